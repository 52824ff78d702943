"""Text for a person's terminal: names of files and classes come from anywhere."""

from __future__ import annotations


def shown(text: str) -> str:
    """The text with everything escaped that could move a cursor, forge a line or not be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
