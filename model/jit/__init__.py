"""Compilation of numba kernels, and the low-level operations that they use."""
