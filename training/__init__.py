"""Training of the shipped demo model; not needed to serve."""
