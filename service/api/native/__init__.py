"""The native API: classify, embed, streams of images, and custom heads."""
