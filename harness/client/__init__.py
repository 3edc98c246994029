"""The measured client process. It imports as little as it can."""
