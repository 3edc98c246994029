"""Causes that only a run over several hosts can have."""
