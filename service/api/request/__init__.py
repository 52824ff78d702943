"""Reads HTTP request bodies and finds their images and options."""
