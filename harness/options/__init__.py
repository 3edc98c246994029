"""Command lines: the parser, argument types, and the step to typed requests."""
