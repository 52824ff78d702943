"""The HTTP API: one module for each contract; all contracts run the same jobs."""
