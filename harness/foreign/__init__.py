"""A server that is not ours: how it is named, started, found and followed."""
