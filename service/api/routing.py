"""The route class of the API: it calls endpoints that read the request themselves directly."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_NAME = re.compile(r"{(\w+)}")


class DirectRoute(APIRoute):
    """A route that calls its endpoint directly if it takes only the request and path parameters that are strings.

    FastAPI would open exit stacks, resolve dependencies and validate the response, which takes longer than all of our
    own code for a small image. The route is documented as any other; errors are handled by the application.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        names = _path_parameters(path, endpoint)
        if names is not None and get_type_hints(endpoint).get("return") is Response:

            async def direct(scope: Scope, receive: Receive, send: Send) -> None:
                parameters = {name: scope["path_params"][name] for name in names}
                response: Response = await endpoint(Request(scope, receive, send), **parameters)
                await response(scope, receive, send)

            self.app = direct


def _path_parameters(path: str, endpoint: Any) -> list[str] | None:
    """The parameters after the request if all are strings in the path; None for an endpoint with others."""
    hints = get_type_hints(endpoint)
    names = list(inspect.signature(endpoint).parameters)
    known = {name for name in _NAME.findall(path) if hints.get(name) is str}
    return names[1:] if names[:1] == ["request"] and known.issuperset(names[1:]) else None
