"""Fetches images from URLs that clients name, from allowed hosts and public addresses only."""
