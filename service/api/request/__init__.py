"""HTTP request bodies to images and options."""
