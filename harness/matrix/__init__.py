"""``profile-matrix``: scenario files, rows, the store, and one run of a row."""
