"""API keys as digests: the format of a key, and the check whether a given key is valid."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from service.errors import SettingsError

LOOKS = "16 to 200 printable ASCII characters, no blanks or commas"
_KEY = re.compile(r"[!-+\--~]{16,200}")


def digests(texts: Iterable[str]) -> tuple[str, ...]:
    """SHA-256 of each key, in hex: keys are long and random, so no salt is needed.

    Raises ValueError for a text that is not a key, and for an empty list: the service would then need no key.
    """
    keys = [text.strip() for text in texts if text.strip()]
    if not keys or not all(_KEY.fullmatch(key) for key in keys):
        raise ValueError
    return tuple(_digest(key.encode("ascii")) for key in keys)


def read(path: Path, setting: str) -> tuple[str, ...]:
    """The digests of the keys in a file, one a line; # begins a comment.

    Raises SettingsError, which names the setting.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return digests(line for line in lines if not line.startswith("#"))
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{setting}: {path} must hold keys, one a line, each of {LOOKS}") from None


def admits(known: Iterable[str], key: bytes) -> bool:
    """Return whether the key has one of these digests. The time does not reveal which one, or how much is right."""
    given = _digest(key)
    return sum(hmac.compare_digest(given, digest) for digest in known) > 0  # any() would stop early


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
