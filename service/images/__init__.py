"""Image bytes to pixels: formats, file structure and limits, decoding, memory."""
