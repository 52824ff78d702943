"""Processes that decode AVIF, HEIC and JPEG XL files. If one ends, other requests are not affected."""
