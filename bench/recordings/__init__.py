"""Runs that are recorded and labelled, and how well their verdicts do."""
