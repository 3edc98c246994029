"""Other people's WebSocket servers, as their documentation shows them, for tests and bench."""
