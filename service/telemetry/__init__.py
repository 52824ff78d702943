"""Metrics, traces and the counters that several processes share."""
