"""The measured server process. It imports as little as it can."""
