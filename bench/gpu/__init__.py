"""The model on a GPU beside the reference's wiring: one command that builds, checks and times. See bench/README.md."""
