"""Understands a run: frames in, findings and limits out. Pure pandas; reads the run directory."""
