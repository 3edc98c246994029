"""Causes of local ports and addresses."""
