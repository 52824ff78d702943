"""Settings of the test session, made before anything imports torch."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes test at once. With a thread for each core in each of them, the threads wait for one another,
    # spinning: the models of full size then need four times as much processor time as with one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
