"""Triton kernels; triton is imported here and in the modules that launch them."""
