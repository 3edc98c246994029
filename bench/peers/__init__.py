"""Other people's WebSocket servers, as their documentation shows them, for the tests and the bench."""
