"""Runs device processes: their queue, supervision, retries, and the slots that they share with the HTTP process."""
