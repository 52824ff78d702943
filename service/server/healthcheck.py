"""The health check of the container: exit status 0 if `/readyz` of the local server answers 200, else 1.

It reads the same settings as the server to find the server's address. It needs no curl and uses no proxy.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from service.errors import SettingsError
from service.settings import Settings

TIMEOUT_S = 4.0
_LONGEST = 2000  # bytes of the answer that are printed, for `docker inspect`
_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Send one request; print the answer or the reason why there is none; return the exit status."""
    try:
        settings = Settings.load()
    except SettingsError as error:
        return _unhealthy(str(error))
    if settings.port == 0:
        return _unhealthy("VIM_PORT=0 selects a free port, which only the log shows; set VIM_PORT to a port number")
    return _ask(_REACHABLE.get(settings.host, settings.host), settings.port, encrypted=settings.tls_cert is not None)


def _ask(host: str, port: int, *, encrypted: bool) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    if encrypted:  # the certificate is for the public name of the server, not for this address
        unchecked = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=unchecked)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(_LONGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return _unhealthy(f"no answer from port {port} of {host}: {error}")
    finally:
        connection.close()
    print(answer.status, text)
    return 0 if answer.status == http.client.OK else 1


def _unhealthy(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
