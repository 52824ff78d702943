"""The command line: serve, classify, embed, info, tune."""
