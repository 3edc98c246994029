"""Understands a run: frames in, findings and limits out. Pure pandas, no I/O but the run directory."""
