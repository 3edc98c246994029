"""Causes at a limit of descriptors."""
