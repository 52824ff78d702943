"""The file `in_domain.json` beside the weights of a model: the `Domain` of its own classifier.

{"fingerprint": of the model with the preprocessing mode "reference", "domain": {name: list of numbers}}
"""

from __future__ import annotations

import json
from pathlib import Path

from model.errors import HeadError
from model.heads.domain import Domain


def read(path: Path) -> tuple[str, Domain]:
    """The fingerprint and the domain. Raises HeadError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["fingerprint"]), Domain.of(found["domain"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise HeadError(f"{path} cannot be read: {error}") from error


def save(path: Path, fingerprint: str, domain: Domain) -> None:
    """Write the file; six digits of each number are kept."""
    numbers = {name: _rounded(array.tolist()) for name, array in domain.arrays().items()}
    path.write_text(json.dumps({"fingerprint": fingerprint, "domain": numbers}) + "\n", encoding="utf-8")


def _rounded(values: object) -> object:
    return [_rounded(one) for one in values] if isinstance(values, list) else float(f"{values:.6g}")
