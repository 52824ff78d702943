"""Measurements: each compares two things in one run; see bench/README.md."""
