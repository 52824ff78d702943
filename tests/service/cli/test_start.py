"""What the entry point sets before it imports anything else."""

import os
import subprocess
import sys

import pytest

CODE = "import sys, os, service.__main__; print('numpy' in sys.modules, os.environ['NUMPY_MADVISE_HUGEPAGE'])"


@pytest.mark.parametrize(("given", "expected"), [({}, "0"), ({"NUMPY_MADVISE_HUGEPAGE": "1"}, "1")])
def test_numpy_asks_for_no_huge_pages_unless_told_to(given: dict[str, str], expected: str) -> None:
    """The entry point turns off huge pages before numpy is imported, since making one stops the event loop."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMPY_MADVISE_HUGEPAGE"} | given
    told = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split() == ["False", expected]
