"""Routes of the API: FastAPI's, without its parsing for endpoints that read the request themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute, APIRouter
from starlette.responses import Response

from service.api.record import Labels

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


class RouteLabels:
    """The labels of the endpoints that answer images, by method and path."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._exact: dict[str, Labels] = {}
        self._patterns: list[tuple[re.Pattern[str], Labels]] = []
        for route in (route for router in routers for route in router.routes):
            if isinstance(route, APIRoute) and (labels := getattr(route.endpoint, "labels", None)):
                if route.param_convertors:
                    self._patterns.append((route.path_regex, labels))
                else:
                    self._exact[route.path] = labels

    @property
    def apis(self) -> list[str]:
        """The values of the label `api`."""
        return sorted({labels.api for labels in (*self._exact.values(), *(one for _, one in self._patterns))})

    def of(self, scope: Any) -> Labels | None:
        """The labels of a request; None for endpoints that answer no images. All of those are POST."""
        if scope["method"] != "POST":
            return None
        path = scope["path"]
        if labels := self._exact.get(path):
            return labels
        return next((labels for pattern, labels in self._patterns if pattern.match(path)), None)
