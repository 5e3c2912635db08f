"""The tokens of this process: what is held, when it is refreshed, and who waits for which request."""
