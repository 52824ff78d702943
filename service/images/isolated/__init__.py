"""A process that decodes AVIF, HEIC and JPEG XL files, and may end without harm. `worker` is its program."""
