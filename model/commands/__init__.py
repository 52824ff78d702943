"""Commands of `python -m model`: convert and evaluate."""
