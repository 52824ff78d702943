"""Python client of the Vision Mamba server."""
