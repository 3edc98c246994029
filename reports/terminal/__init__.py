"""The live view, and the lines at the end."""
