"""Figures, one module per topic: frames of a summary in, a matplotlib figure out."""
