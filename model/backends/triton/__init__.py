"""The `triton` backend: the encoder as Triton kernels for CUDA devices."""
