"""What watching may cost, where the costly probes look, and when."""
