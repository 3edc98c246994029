"""Causes of memory, buffers and heaps."""
