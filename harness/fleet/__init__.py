"""What both measured sides share: configuration, forking, namespace, the turn of a loop."""
