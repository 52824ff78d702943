"""`make test-clients`: builds an environment for each group of clients and runs them all against real servers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tests.clients.environments import ROOT, Missing, build
from tests.clients.matrix import Place, of
from tests.clients.servers import VARIABLE, Servers, started


def main() -> int:
    """Returns 0 when every client's tests passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", action="append", choices=get_args(Place), help="one environment; may be repeated")
    places: list[Place] = parser.parse_args().only or list(get_args(Place))
    folders, not_built = built(places)
    ready = [place for place in places if place not in not_built]
    failed: list[Place] = list(not_built)
    if ready:
        with tempfile.TemporaryDirectory() as directory, started(Path(directory)) as servers:
            failed += [place for place in ready if _run(place, folders.get(place), servers)]
    for place, reason in not_built.items():
        print(f"{place}: {reason}")
    print(f"failed: {', '.join(failed)}" if failed else f"all clients passed: {', '.join(places)}")
    return 1 if failed else 0


def built(places: Sequence[Place]) -> tuple[dict[Place, Path], dict[Place, str]]:
    """The folders of the environments, and the errors of those that cannot be built; the others are still run."""
    folders: dict[Place, Path] = {}
    not_built: dict[Place, str] = {}
    for place in places:
        try:
            if place != "none":
                folders[place] = build(place)
        except (Missing, subprocess.CalledProcessError) as error:
            not_built[place] = str(error)
    return folders, not_built


def _run(place: Place, folder: Path | None, servers: Servers) -> int:
    """pytest's exit status; a skipped test fails it, because here nothing may be missing."""
    own = place in ("core", "kserve", "libraries") and folder is not None
    python = str(folder / "bin" / "python") if own and folder else sys.executable
    files = sorted({f"tests/clients/{client.tests}" for client in of(place)})
    environment = os.environ | {VARIABLE: servers.to_json(), f"CLIENTS_{place.upper()}": str(folder)}
    print(f"== {place}: {', '.join(client.pin for client in of(place))}", flush=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", *files],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    print(done.stdout)
    return done.returncode or "skipped" in done.stdout.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
