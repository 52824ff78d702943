"""One request from admission to its result."""
