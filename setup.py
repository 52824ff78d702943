"""Tells setuptools which packages and data to install; everything else is in pyproject.toml.

The demo model and the sample pictures are outside the packages. They are installed as folders of `model/data`,
where `model.shipped` looks for them.
"""

from setuptools import find_packages, setup

SHIPPED = {
    "model.data.demo": "models/demo",
    "model.data.samples": "examples/images",
    "model.data.photos": "examples/photos",
}

setup(
    packages=[*find_packages(include=["service", "service.*", "model", "model.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "model": ["*.tsv"],
        "model.backends.triton": ["*.json"],
        "model.data.demo": ["*.json", "*.safetensors", "README.md"],
        "model.data.samples": ["*"],
        "model.data.photos": ["*"],
        "service.api": ["page/*"],
    },
    include_package_data=False,
)
