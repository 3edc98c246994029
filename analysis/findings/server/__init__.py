"""What a server did or said that is no limit of the host."""
