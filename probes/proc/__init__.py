"""Readers of /proc and /sys. No probe."""
