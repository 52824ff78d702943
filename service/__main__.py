"""`python -m service serve | classify FILE... | embed FILE... | info`: the entry point of `cli`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from service.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # while modules are still being imported
        sys.exit(130)
