"""Faults of the device process that a test requests by the colour of an image, or by a variable when it is started.

`tests.e2e.faulty_worker` implements them. For tests only; no setting of the service uses them.
"""

from __future__ import annotations

import io

from PIL import Image

Colour = tuple[int, int, int]

SEGFAULT: Colour = (255, 0, 0)
HANG: Colour = (0, 255, 0)
NOT_FINITE: Colour = (0, 0, 255)
RAISE: Colour = (255, 255, 0)
WAIT: Colour = (0, 255, 255)  # until the file GO exists
STICKY: Colour = (255, 0, 255)  # an error after which the device cannot be used
HANG_S = 60.0

PREFIX = "FAULTY_"
ROOM = "ROOM"  # images that fit into memory
BATCH_S = "BATCH_S"  # seconds longer for each batch
IMAGE_S = "IMAGE_S"  # seconds longer for each image
GO = "GO"  # a file that ends the wait of an image that waits
STICKY_ONCE = "STICKY_ONCE"  # a file that is made with the first sticky error; there is no second
DOWN = "DOWN"  # a file with names of devices, one a line: their processes cannot start while it exists
WRONG_CANARY = "WRONG_CANARY"  # a file; while it exists every embedding is wrong
NAN_CANARY = "NAN_CANARY"  # a file; while it exists no embedding is finite


def plain(colour: Colour) -> bytes:
    """An image of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(encoded, "PNG")
    return encoded.getvalue()
