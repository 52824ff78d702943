"""The route class of the API: it calls endpoints that read the request themselves directly."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route that calls its endpoint directly if the endpoint takes only the request.

    FastAPI would resolve dependencies and validate the response, which takes longer than all our own code for a small
    image. The route appears in the OpenAPI document like any other.
    """

    def get_route_handler(self) -> Handler:
        """The endpoint itself if it takes a request and returns a response, else FastAPI's handler."""
        endpoint: Any = self.endpoint
        takes_request = list(inspect.signature(endpoint).parameters) == ["request"]
        if takes_request and get_type_hints(endpoint).get("return") is Response:
            handler: Handler = endpoint
            return handler
        return super().get_route_handler()
