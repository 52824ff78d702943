"""The documents say what the code does: tables, modules, settings, metrics, commands, links and examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

import model
from model.loading.source import SHIPPED
from service.app import create_app
from service.errors import all_errors
from service.settings import Settings, variable
from service.telemetry import definitions
from service.telemetry.rejections import Reason
from tools import doc_tables

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "bench" / "README.md", *PAGES]
ARCHITECTURE = DOCS / "internals" / "architecture.md"
COMMAND_LINE = DOCS / "guide" / "command-line.md"
DOCKER = DOCS / "guide" / "docker.md"
CONTAINER_IMAGE = DOCS / "internals" / "container-image.md"
# Document -> the most bytes it may have.
LARGEST = {ROOT / "README.md": 6000, ARCHITECTURE: 6000}
# VIM_ variables in the documents that are not ours, and are named for that.
FOREIGN = {"VIM_ADMIN_KEY", "VIM_CLIENT_KEY", "VIM_SERVICE_HOST"}


def name_of(path: Path) -> str:
    """A document as a test names it."""
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    """The text of one document."""
    return path.read_text(encoding="utf-8")


def block(name: str) -> str:
    """The generated block of this name."""
    return doc_tables.block(name)[1]


def first_column(table: str, column: int = 0) -> set[str]:
    """The cells of a column, without backticks."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {row[column].strip("` ") for row in rows}


@pytest.mark.parametrize("name", doc_tables.TABLES)
def test_tables_are_as_the_code_has_them(name: str) -> None:
    """Rows, defaults and words; `python -m tools.doc_tables` writes them anew."""
    assert doc_tables.TABLES[name]() == block(name), "run: python -m tools.doc_tables"


def test_every_setting_is_in_its_table() -> None:
    """Independently of how the table is made."""
    named = re.findall(r"^\| `(VIM_\w+)`", block("settings"), re.MULTILINE)

    assert sorted(variable(field) for field in Settings.model_fields) == sorted(named)


def test_every_endpoint_is_in_its_table() -> None:
    """Every path of the OpenAPI document, with its methods."""
    paths = create_app(Settings()).openapi()["paths"]
    ours = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}

    assert ours | {"GET /docs", "GET /redoc", "GET /openapi.json"} == first_column(block("endpoints"))


def test_every_error_is_in_its_table() -> None:
    """Every error is in the table of errors, by its code."""
    assert {error.code for error in all_errors()} == first_column(block("errors"), 1)


def test_every_metric_is_in_its_table() -> None:
    """Every metric is in the table of metrics, by its name."""
    assert {one.name for one in definitions.METRICS} == first_column(block("metrics"))


def test_every_reason_of_a_rejection_is_named() -> None:
    """A person who sees one in a graph finds it in the reference."""
    assert [] == [reason for reason in get_args(Reason) if reason not in block("metrics")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_settings_and_metrics_in_the_text_exist(document: Path) -> None:
    """Every setting and metric that a document mentions exists."""
    text = text_of(document)
    settings = {variable(field) for field in Settings.model_fields} | FOREIGN
    known = {one.name for one in definitions.METRICS}
    series = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"(?<![\w.:-])vim_[a-z_]+\b", text)}
    # Checkpoints of hustvl/Vim are called vim_t_..., its models vim_tiny_..., and our client vim_client.
    named = {name for name in series if not re.match(r"vim_((t|s|b|tiny|small|base)_|client$)", name)}

    assert set() == set(re.findall(r"\bVIM_[A-Z0-9_]*[A-Z0-9]\b", text)) - settings
    assert set() == named - known


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_in_the_text_exist(document: Path) -> None:
    """`make X` in a code block or between backticks."""
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    mentioned = set(re.findall(r"(?:^|`|\s\w+=\S+ )make ([a-z][a-z-]*)", text_of(document), re.MULTILINE))

    assert set() == mentioned - targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_modules_run_in_the_text_exist(document: Path) -> None:
    """`python -m X` of ours is a module or a package that runs."""
    mentioned = set(re.findall(r"python -m ((?:service|model|tools|bench)[\w.]*)", text_of(document)))
    places = {name: ROOT.joinpath(*name.split(".")) for name in mentioned}
    runs = {n for n, place in places.items() if place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()}

    assert mentioned == runs


@pytest.mark.parametrize("package", ["service", "model"])
def test_commands_are_documented(package: str) -> None:
    """Every command of the guide exists, and every command that exists is in the guide."""
    source = "\n".join(text_of(path) for path in (ROOT / package).rglob("*.py"))
    real = set(re.findall(r"add_parser\(\s*\"([\w-]+)\"", source))
    shown = set(re.findall(rf"python -m {package} ([a-z][\w-]*)", text_of(COMMAND_LINE)))

    assert real == shown


@pytest.mark.parametrize("document", [ROOT / "bench" / "README.md", ROOT / "docs" / "benchmarks.md"], ids=name_of)
def test_options_of_the_benchmarks_exist(document: Path) -> None:
    """Every `--option` of the pages about benchmarks is one of a benchmark's."""
    real = {option for path in (ROOT / "bench").rglob("*.py") for option in re.findall(r"--[a-z-]+", text_of(path))}

    assert set() == set(re.findall(r"(?<!\w)--[a-z][a-z-]*", text_of(document))) - real


@pytest.mark.parametrize("document", LARGEST, ids=name_of)
def test_first_documents_are_short(document: Path) -> None:
    """A newcomer reads the README and the architecture from beginning to end."""
    assert document.stat().st_size <= LARGEST[document]


def test_the_site_has_every_page() -> None:
    """The navigation of the site names each page once."""
    named = re.findall(r": ([\w/-]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE)

    assert [path.relative_to(DOCS).as_posix() for path in PAGES] == sorted(named)


def test_build_arguments_are_the_dockerfiles() -> None:
    """All that change what is built or said of it; PYTHON and CUDA follow from the pinned versions."""
    bases = {"BASE", "TOOLKIT"}  # docs/internals/container-image.md
    real = set(re.findall(r"^ARG (\w+)", text_of(ROOT / "Dockerfile"), re.MULTILINE)) - {"PYTHON", "CUDA"} - bases
    table = re.search(r"\| Build argument .*?\n\n", text_of(DOCKER), re.DOTALL)

    assert table is not None
    assert all(f"`{name}`" in text_of(CONTAINER_IMAGE) for name in bases)
    assert real == {name for row in first_column(table[0].strip()) for name in re.findall(r"\w+", row)}


def test_compose_variables_exist() -> None:
    """What the guide sets for Compose beside the settings is read there."""
    read = set(re.findall(r"\$\{(\w+)", text_of(ROOT / "docker-compose.yml")))

    assert {"WEIGHTS", "PUBLISH", "GPU_PUBLISH"} <= read


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(document: Path) -> None:
    """Files and folders named in links exist."""
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text_of(document))

    assert [] == [link for link in links if not (document.parent / link).exists()]


def test_every_package_is_on_the_map() -> None:
    """The architecture names each package of service and model, or the package that it is a part of."""
    named = set(re.findall(r"`((?:service|model)/[\w/]+)`", text_of(ARCHITECTURE)))
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("service", "model")
        for path in (ROOT / package).rglob("*/__init__.py")
    }

    assert set() == {
        package for package in packages if not any(package.startswith(f"{one}/") or package == one for one in named)
    }


@pytest.mark.parametrize("document", sorted((DOCS / "internals").glob("*.md")), ids=name_of)
def test_files_named_in_the_architecture_exist(document: Path) -> None:
    """Anything in backticks that looks like a path of ours exists."""
    named = re.findall(r"`((?:service|model|tests|tools|bench|deploy)/[\w/.-]*)`", text_of(document))

    assert [] == [name for name in named if not (ROOT / name).exists()]


def test_every_quirk_in_the_code_is_listed() -> None:
    """A comment that says "quirk 6" leads to a row of docs/internals/quirks.md."""
    sources = "\n".join(text_of(path) for path in (ROOT / "model").rglob("*.py"))
    rows = set(re.findall(r"^\| (\d+) \|", text_of(ROOT / "docs" / "internals" / "quirks.md"), re.MULTILINE))

    assert set() == set(re.findall(r"[Qq]uirk (\d+)", sources)) - rows


def examples() -> list[tuple[str, dict[str, object]]]:
    """The example answers of all pages with their path; dots stand for what was left out."""
    pattern = re.compile(r"<!-- example: POST (\S+) -->\n```json\n(.*?)```", re.DOTALL)
    found = [one for page in PAGES for one in pattern.findall(text_of(page))]
    return [(path, json.loads(body.replace(", ...", ""))) for path, body in found]


@pytest.mark.parametrize(("path", "body"), examples())
def test_example_answers_have_the_shape_of_real_ones(path: str, body: dict[str, object]) -> None:
    """They hold the schema's members, all of them, and no other."""
    assert body == doc_tables.response_model(path).model_validate(body).model_dump(exclude_none=True)


@pytest.mark.skipif(not any(SHIPPED["demo"].glob("*.safetensors")), reason="the demo model is not there")
def test_example_answers_are_the_demo_models() -> None:
    """A new demo model needs new examples: run the two curl commands of the quickstart and paste what they answer."""
    fingerprint = model.load("demo", device="cpu", preprocess="friendly").fingerprint

    assert {(("name", "demo"), ("fingerprint", fingerprint))} == {
        tuple(body["model"].items())  # type: ignore[attr-defined]
        for _, body in examples()
    }
