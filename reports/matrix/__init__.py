"""``profile-matrix``: page, terminal and Markdown."""
