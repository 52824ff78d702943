"""Python client of the Vision Mamba server: `pip install ./client`, then `from vim_client import Client`."""

from vim_client.client import AsyncClient, Classification, Client, Prediction, Vector
from vim_client.http import ServerError
from vim_client.images import Image, find_images

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "Image",
    "Prediction",
    "ServerError",
    "Vector",
    "find_images",
]
