"""``profile-compare``: page and text."""
