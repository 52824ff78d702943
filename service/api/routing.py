"""The route class of the API: it calls endpoints that read the request themselves directly."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route that calls its endpoint directly if the endpoint takes only the request.

    FastAPI would open exit stacks, resolve dependencies and validate the response, which takes longer than all of our
    own code for a small image. The route is documented as any other; errors are handled by the application.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        takes_request = list(inspect.signature(endpoint).parameters) == ["request"]
        if takes_request and get_type_hints(endpoint).get("return") is Response:

            async def direct(scope: Scope, receive: Receive, send: Send) -> None:
                response: Response = await endpoint(Request(scope, receive, send))
                await response(scope, receive, send)

            self.app = direct
