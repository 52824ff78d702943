"""The Open Inference Protocol (KServe, Triton): routes, tensors and statistics under /v2."""
