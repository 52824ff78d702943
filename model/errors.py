"""Errors of the model package. Every message says what was found and what to do about it.

ModelError
 ├── ConfigError     an architecture that cannot be built
 ├── WeightsError    a checkpoint that cannot be read or does not fit the architecture
 ├── LabelsError     a label list that does not fit the head
 ├── HeadError       a custom head that cannot be read or does not fit the model
 └── ScanError       a scan backend that cannot run here
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any


class ModelError(Exception):
    """A model cannot be constructed or loaded. The message is for the person who chose the model."""


class ConfigError(ModelError, ValueError):
    """The configuration is invalid, or the reference itself cannot run it."""


class WeightsError(ModelError):
    """The checkpoint cannot be read safely, or its tensors do not match the architecture."""


class LabelsError(ModelError, ValueError):
    """The label list is unreadable, or its length differs from the number of classes."""


class HeadError(ModelError, ValueError):
    """The custom head is damaged, incomplete, or made for another model."""


class ScanError(ModelError):
    """The requested scan backend is unknown or cannot run on this machine."""


def reject_unknown(given: Mapping[str, Any], known: set[str], what: str) -> None:
    """Raise ConfigError for the first name in `given` that is not in `known`, with the nearest known name.

    `what` describes the names in the message, for example "configuration field".
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown {what} {name!r}{hint}")
