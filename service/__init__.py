"""The inference microservice: HTTP, decoding, batching and the device processes."""

__version__ = "0.1.0"
