"""A loaded model on a device: uint8 pixels in, float32 rows out."""
