"""The model on a GPU compared with the reference's wiring: one command builds, checks and times. See
bench/README.md.
"""
