"""Custom classification heads, and whether an image is like those that a classifier was taught with."""
