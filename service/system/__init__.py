"""What the operating system offers: CPUs, thread limits, scheduling."""
