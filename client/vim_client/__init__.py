"""Python client of the Vision Mamba server: `pip install ./client`, then `from vim_client import Client`."""

from vim_client.answers import Classification, Prediction, Vector
from vim_client.client import AsyncClient, Client
from vim_client.http import ClientError, ServerError, UnreachableError
from vim_client.images import Image, ImageError, find_images

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Image",
    "ImageError",
    "Prediction",
    "ServerError",
    "UnreachableError",
    "Vector",
    "find_images",
]
