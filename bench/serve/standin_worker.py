"""The device process with the stand-in as its model. Run as a program only."""

from __future__ import annotations

import sys

from bench.serve import standin
from service.devices import worker

if __name__ == "__main__":
    standin.install()
    sys.exit(worker.main(int(sys.argv[1]), int(sys.argv[2])))
