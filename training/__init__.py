"""Training of the shipped demo model. Serving does not need this package."""
