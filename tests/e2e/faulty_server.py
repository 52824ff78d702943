"""`python -m service serve` with the faulty device process."""

from __future__ import annotations

import sys

from service import log
from service.server import serve
from service.settings import Settings

if __name__ == "__main__":
    settings = Settings.load()
    log.configure(settings.log_level)
    sys.exit(serve(settings, worker="tests.e2e.faulty_worker"))
