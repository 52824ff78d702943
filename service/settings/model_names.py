"""The names that a model may have among several, and the list of names and sources in VIM_MODELS."""

from __future__ import annotations

import re

MOST = 64  # models of one server
NAME = "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit, not ending in -tensor"
LIST = f"at most {MOST} of NAME=SOURCE, separated by commas, each NAME once and of {NAME}"

# The Open Inference Protocol serves each model a second time, as NAME-tensor. `~` separates a model from its heads.
_NAME = re.compile(r"(?!.*-tensor\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Return whether a model may have this name."""
    return _NAME.fullmatch(text) is not None


def read(text: str) -> dict[str, str]:
    """Read VIM_MODELS: name -> source, in the order of the text. Raises ValueError if it is not such a list."""
    pairs = [_pair(entry) for entry in text.split(",")]
    found = dict(pairs)
    if len(found) < len(pairs) or len(pairs) > MOST:
        raise ValueError
    return found


def _pair(entry: str) -> tuple[str, str]:
    name, _, source = (part.strip() for part in entry.partition("="))
    if not is_name(name) or not source:
        raise ValueError
    return name, source
