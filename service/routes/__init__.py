"""The HTTP routes, thin: what a request says → a call of the engine → what the answer says."""
