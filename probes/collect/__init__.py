"""The probe process: which probes there are, and how they are driven."""
