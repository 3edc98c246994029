"""Causes of time: processor, blocking, uneven load."""
