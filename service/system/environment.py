"""Which environment variables are meant for this server: others begin with VIM_ as well."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

PREFIX = "VIM_"
# Kubernetes sets these in every pod when a service is named vim or vim-something, unless enableServiceLinks is false.
_LINK = re.compile(r"VIM(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINK_PORT = re.compile(r"VIM(_\w+)?_PORT")
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
# The editor Vim sets these in its :terminal.
_EDITOR = {"VIM_SERVERNAME", "VIM_TERMINAL"}


def variable(field: str) -> str:
    """The environment variable of a field of the settings."""
    return PREFIX + field.upper()


def ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that begin with VIM_, without those of Kubernetes and of the editor Vim."""
    return {name: text for name, text in environ.items() if name.startswith(PREFIX) and not _is_foreign(name, text)}


def unknown(name: str, known: Collection[str]) -> str:
    """The error for a variable that is no setting."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"{name} is not a setting; {hint}"


def _is_foreign(name: str, text: str) -> bool:
    link = _LINK.fullmatch(name) or (_LINK_PORT.fullmatch(name) and _LINK_ADDRESS.match(text))
    return bool(link) or name in _EDITOR
