"""The CPU image's Python packages as a CycloneDX 1.6 bill of materials: versions, hashes, licences and dependencies.

    python -m tools.sbom build/sbom.cdx.json

From the image's lock; licences from the packages as installed here, and the C libraries inside their wheels as parts of
them. Needs no network. The packages of the base image are not in it: `docker buildx build --sbom=true` lists them.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service import __version__
from tools.audit import ROOT, pins
from tools.libraries import Library, libraries
from tools.lock_image import APART, LOCK, needs, read, roots

LONGEST = 100  # characters; some packages have the whole text of the licence in the field for its name


def bom() -> Bom:
    """The bill of materials, without the base image."""
    text = LOCK.read_text(encoding="utf-8")
    made = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, text))
    program = Component(name="vim-server", version=__version__, type=ComponentType.APPLICATION, bom_ref="vim-server")
    program.licenses.add(LicenseFactory().make_with_expression("Apache-2.0"))
    made.metadata.component = program
    torch, _ = pins(ROOT / "constraints-cpu.txt")
    locked = read(text) | {APART: (torch[APART], [])}
    components = {name: _component(name, version, hashes) for name, (version, hashes) in locked.items()}
    for library in libraries():
        if library.wheel in components:
            components[library.wheel].components.add(_part(library))
    made.components.update(components.values())
    direct = [canonicalize_name(Requirement(one).name) for one in roots()] + [APART]
    made.register_dependency(program, [components[name] for name in direct])
    for name, component in components.items():
        wanted = {canonicalize_name(Requirement(one).name) for one in needs(name)}
        made.register_dependency(component, [components[one] for one in sorted(wanted)])
    return made


def _component(name: str, version: str, hashes: list[str]) -> Component:
    component = Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=name, version=version),
    )
    for licence in _licences(name):
        component.licenses.add(LicenseFactory().make_from_string(licence))
    for one in hashes:  # of a wheel for one machine; readers compare a component's own hashes with any file of it
        where = XsUri(f"https://pypi.org/project/{name}/{version}/")
        sha = HashType(alg=HashAlgorithm.SHA_256, content=one)
        kind = ExternalReferenceType.DISTRIBUTION
        component.external_references.add(ExternalReference(type=kind, url=where, hashes=[sha]))
    return component


def _part(library: Library) -> Component:
    return Component(
        name=library.name,
        version=library.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{library.wheel}:{library.name}=={library.version}",
    )


def _licences(name: str) -> Iterator[str]:
    """An expression where there is one, else the classifiers, else a short free text."""
    about = metadata.metadata(name)
    classifiers = about.get_all("Classifier") or []
    classified = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    short = [text for text in about.get_all("License") or [] if len(text) <= LONGEST]
    yield from about.get_all("License-Expression") or classified or short


def main() -> None:
    """Write the bill of materials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(JsonV1Dot6(bom()).output_as_string(indent=2) + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
