"""Measurements: each compares two things in one run and reports medians and ratios; see bench/README.md."""
