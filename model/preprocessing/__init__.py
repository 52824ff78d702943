"""Images to the pixels that a model expects."""
