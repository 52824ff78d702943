"""One module for each contract the service speaks: parse, run the same jobs, render."""
