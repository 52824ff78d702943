"""The model on a CUDA device: graphs, page-locked memory, two batches in flight, and a measured precision."""
