"""Causes of the kernel's queues and tables."""
