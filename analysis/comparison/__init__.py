"""Several runs: may they be compared, what changed, what moved."""
