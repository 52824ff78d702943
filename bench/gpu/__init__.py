"""The model on a GPU compared with the reference's wiring: build, check and time. See bench/README.md."""
