"""`tune`: measure this machine and recommend settings."""
