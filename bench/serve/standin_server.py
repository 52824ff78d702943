"""`python -m service serve` with `bench.serve.standin_worker` as its device process; there is no setting for that."""

from __future__ import annotations

import sys

from service import log
from service.server.server import serve
from service.settings import Settings

if __name__ == "__main__":
    settings = Settings.load()
    log.configure(settings.log_level)
    sys.exit(serve(settings, worker="bench.serve.standin_worker"))
