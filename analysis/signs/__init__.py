"""Facts that more than one finding needs, each computed once."""
