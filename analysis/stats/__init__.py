"""Lines, spreads and what is computed once. No word of runs."""
