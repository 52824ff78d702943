"""The bill of materials of the image, made without a network."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("cyclonedx", reason="needs the extra: deploy")

from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.lock_image import LOCK, read
from tools.sbom import bom


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The bill of materials as JSON values."""
    found: dict[str, Any] = json.loads(JsonV1Dot6(bom()).output_as_string())
    return found


def test_it_lists_what_the_image_has(made: dict[str, Any]) -> None:
    """The bill lists the locked packages and torch, each with the hashes that pip checks."""
    found = {one["name"]: one for one in made["components"]}
    locked = read(LOCK.read_text())

    assert {*locked, "torch"} == found.keys()
    for name, (version, hashes) in locked.items():
        references = found[name]["externalReferences"]
        assert version == found[name]["version"]
        assert f"pkg:pypi/{name}@{version}" == found[name]["purl"]
        assert set(hashes) == {one["content"] for reference in references for one in reference["hashes"]}


def test_it_says_under_which_licences(made: dict[str, Any]) -> None:
    """The bill has the licence of every package that declares one."""
    silent = {one["name"] for one in made["components"] if not one.get("licenses")}

    assert set() == silent


def test_it_names_the_libraries_inside_wheels(made: dict[str, Any]) -> None:
    """The bill has the C libraries that decode images as parts of the packages that contain them."""
    parts = {one["name"]: {part["name"] for part in one.get("components", [])} for one in made["components"]}

    assert {"libavif", "libjpeg-turbo", "libtiff", "libwebp"} <= parts["pillow"]
    assert {"libheif", "libde265"} == parts["pi-heif"]
    assert {"libjpeg-turbo"} == parts["simplejpeg"]
    assert {"llvm"} == parts["llvmlite"]


def test_it_says_who_needs_whom(made: dict[str, Any]) -> None:
    """The bill has the dependencies of every package, beginning with the program."""
    needs = {one["ref"].partition("==")[0]: one.get("dependsOn", []) for one in made["dependencies"]}

    assert {"torch", "fastapi", "opentelemetry-sdk"} <= {one.partition("==")[0] for one in needs["vim-server"]}
    assert {"starlette", "pydantic"} <= {one.partition("==")[0] for one in needs["fastapi"]}


def test_it_follows_the_schema(made: dict[str, Any]) -> None:
    """The bill follows the strict schema of CycloneDX 1.6, where the validator is installed."""
    pytest.importorskip("jsonschema")
    from cyclonedx.exception import MissingOptionalDependencyException

    try:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made)) is None
    except MissingOptionalDependencyException:
        pytest.skip("cyclonedx-python-lib's extra json-validation is not installed")


def test_the_same_lock_gives_the_same_bill() -> None:
    """The same lock gives the same bill, except for its time."""
    assert bom().serial_number == bom().serial_number
