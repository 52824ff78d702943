"""The route class of the API: FastAPI's, without its parsing for endpoints that read the request themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route whose endpoint is called with the request alone where that is all it takes.

    FastAPI would resolve dependencies and validate the response, which takes longer than all of our own code for a
    small image. The route is documented as any other.
    """

    def get_route_handler(self) -> Handler:
        """The endpoint itself if it maps a request to a response, else FastAPI's handler around it."""
        endpoint: Any = self.endpoint
        takes_request = list(inspect.signature(endpoint).parameters) == ["request"]
        if takes_request and get_type_hints(endpoint).get("return") is Response:
            handler: Handler = endpoint
            return handler
        return super().get_route_handler()
