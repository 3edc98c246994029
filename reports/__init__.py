"""Shows a run: figures, one HTML page, the terminal. Computes no meaning."""
