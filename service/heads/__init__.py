"""Custom classification heads: a directory of files, and the scores of a request's heads."""
