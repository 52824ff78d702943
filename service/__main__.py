"""`python -m service serve | classify FILE... | embed FILE... | info | tune`: runs `service.cli.main`."""

from __future__ import annotations

import os
import sys

# Set before numpy is imported. numpy requests huge pages for a large photograph's pixels; while the kernel assembles
# one, the event loop waits for the process's memory map: up to 130 ms (`bench.lag`).
os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")

if __name__ == "__main__":
    try:
        from service.cli.main import main

        sys.exit(main())
    except KeyboardInterrupt:  # while modules are still being imported
        sys.exit(130)
