"""Compilation of numba kernels, and the low-level operations they use."""
