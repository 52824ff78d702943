"""`python -m service serve` with the faulty device process; SIGUSR1 blocks its event loop for a while."""

from __future__ import annotations

import signal
import sys
import time

from service import log
from service.server.server import serve
from service.settings import Settings

STUCK_S = 4.0

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(STUCK_S))
    settings = Settings.load()
    log.configure(settings.log_level)
    sys.exit(serve(settings, worker="tests.e2e.faulty_worker"))
