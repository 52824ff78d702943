"""From a file, a folder or a model hub to a checked model."""
