"""Many rows: what bound each, and what was provoked against what was named."""
