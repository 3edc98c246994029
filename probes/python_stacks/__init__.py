"""The probe that samples Python with py-spy."""
