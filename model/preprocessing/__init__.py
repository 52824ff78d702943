"""From images to the pixels that a model expects."""
