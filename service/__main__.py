"""`python -m service serve | classify FILE... | embed FILE... | info`, installed as `vim-server`: see `service.cli`."""

from __future__ import annotations

import os
import sys

# This must run before numpy is imported. numpy asks the kernel for huge pages for the pixels of a large photograph;
# while the kernel assembles one, the event loop waits for the memory map of the process: up to 130 ms (`bench.lag`).
os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        from service.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # while modules are still being imported
        return 130


if __name__ == "__main__":
    sys.exit(main())
