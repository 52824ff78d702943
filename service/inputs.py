"""Request -> image bytes, within the body limit. Does not decode images; that is `service.images`."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, EmptyBody, MalformedBody


async def read_images(request: Request, max_bytes: int) -> list[bytes]:
    """The images of a request: its body is one encoded image, whatever its Content-Type says.

    Raises EmptyBody, BodyTooLarge, MalformedBody.
    """
    return [await read_body(request, max_bytes)]


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, counted while it streams in, so that neither a missing nor a false length gets past the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(f"{declared} bytes", max_bytes)
    parts, received = [], 0
    try:
        async for part in request.stream():
            received += len(part)
            if received > max_bytes:
                raise _too_large(f"more than {max_bytes} bytes", max_bytes)
            parts.append(part)
    except ClientDisconnect as error:
        raise MalformedBody("the client left before the body was complete") from error
    if not received:
        raise EmptyBody("the body is empty; send the bytes of an image")
    return b"".join(parts)


def _too_large(found: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {found}; the limit is {limit} (VIM_MAX_BODY_BYTES)")
