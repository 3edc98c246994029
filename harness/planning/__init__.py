"""What the host holds, how a run is laid out, and which limit is met first. Pure."""
