"""Takes requests from admission to their results."""
