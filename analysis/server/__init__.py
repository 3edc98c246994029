"""What a server did with its connections, what it said, and the limits that it sets itself."""
