"""The commands of `python -m model`: inspect, convert, evaluate."""
