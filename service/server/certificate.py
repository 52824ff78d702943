"""Checks that the TLS certificate and its key can be used."""

from __future__ import annotations

import ssl
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings


def check(settings: Settings) -> None:
    """Raise SettingsError if one of the two files cannot be read, or they do not fit together."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for name, path in (("VIM_TLS_CERT", settings.tls_cert), ("VIM_TLS_KEY", settings.tls_key)):
        _check_readable(name, path)
    try:
        # Without this password OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, lambda: "")
    except OSError as error:
        raise SettingsError(
            "VIM_TLS_CERT and VIM_TLS_KEY must be a certificate and its private key, both PEM, without a passphrase: "
            f"{error.strerror or error}"
        ) from None


def _check_readable(name: str, path: Path) -> None:
    """The errors of OpenSSL do not name the file."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None
