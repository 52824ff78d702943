"""Triton kernels. The modules of this package import triton."""
