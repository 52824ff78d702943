"""Preprocessing kernels compiled with numba, bit for bit equal to Pillow."""
