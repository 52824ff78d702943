"""The `numba` backend: the encoder compiled for CPUs."""
