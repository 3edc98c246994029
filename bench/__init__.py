"""``make bench``: what the main job costs here, beside its bars and Node ``ws``."""
