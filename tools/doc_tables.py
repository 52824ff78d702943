"""The tables of the documentation that are made from the code: `python -m tools.doc_tables` rewrites them in place.

Each is between `<!-- NAME -->` and `<!-- /NAME -->`, in one document. `tests/test_docs.py` fails while a document and
the code differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from bench.gpu.table import table as measured
from model.loading.released import RELEASED
from model.preprocessing import colour
from model.preprocessing.colour import Kind
from service.api.native import bulk
from service.api.request import body, content_encoding, image_fields, json_body, multipart
from service.app import create_app
from service.errors import (
    BodyTooLarge,
    Failure,
    FetchFailed,
    ImageTooComplex,
    MalformedBody,
    Refusal,
    RequestError,
    TooManyImages,
    all_errors,
)
from service.fetch import fetcher
from service.fetch.outcome import Outcome
from service.images import header, inspect_file, inspect_jpeg, inspect_tiff
from service.jobs import Memory, RequestClass
from service.server import protocol
from service.settings import Settings, allowed, groups, variable
from service.system import field_words
from service.telemetry import definitions
from service.telemetry.rejections import Reason
from tests.clients.matrix import CLIENTS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

# FastAPI's own pages have no docstring of ours.
_PAGES = {
    "/docs": "Interactive documentation (Swagger UI), with nothing from elsewhere.",
    "/redoc": "The same as one page (ReDoc).",
    "/openapi.json": "The OpenAPI document, for client generators.",
}
_HELPERS = {"/docs/{name}"}
_LIMITS = (
    *("max_body_bytes", "max_images", "max_pixels", "max_decode_bytes", "queue_images", "queue_bytes", "bulk_percent"),
    *("request_timeout_ms", "header_timeout_ms", "body_timeout_ms", "keep_alive_ms"),
    *("fetch_max_bytes", "fetch_timeout_ms", "fetch_max_urls", "fetch_concurrency"),
)
_FIXED_LIMITS = (
    ("Bytes of a request's header", protocol.MOST_HEADER_BYTES, "status 431"),
    ("Images of a bulk stream in flight", bulk.IN_FLIGHT, "the stream waits"),
    ("Options in a form", multipart.MAX_FIELDS, TooManyImages.code),
    ("Bytes of an option in a form", body.MOST_FIELD_BYTES, MalformedBody.code),
    ("Numbers in a JSON body", json_body.MOST_NUMBERS, BodyTooLarge.code),
    ("Lists in a JSON body", json_body.MOST_LISTS, BodyTooLarge.code),
    ("Levels of nesting in a JSON body", json_body.DEEPEST, MalformedBody.code),
    ("Members of a gzip body", content_encoding.MOST_MEMBERS, MalformedBody.code),
    ("Characters of a URL", image_fields.LONGEST_URL, MalformedBody.code),
    ("Redirects of a fetch", fetcher.MOST_REDIRECTS, FetchFailed.code),
    ("Chunks, segments, blocks or strips of an image file", header.MAX_PARTS, ImageTooComplex.code),
    ("Scans of a JPEG", header.MAX_SCANS, ImageTooComplex.code),
    ("Components of all scans times pixels, of a JPEG", header.MAX_SCAN_PIXELS, ImageTooComplex.code),
    ("Bytes of a PNG when unpacked", header.MAX_PACKED_BYTES, ImageTooComplex.code),
    ("Pixels of a run-length encoded BMP", inspect_file.MAX_RUN_PIXELS, ImageTooComplex.code),
    ("Bytes of EXIF", inspect_jpeg.MAX_EXIF_BYTES, ImageTooComplex.code),
    ("Tags of a TIFF", inspect_tiff.MAX_TAGS, ImageTooComplex.code),
    ("Bytes of a colour profile", colour.LARGEST_PROFILE, "the profile is ignored"),
)
_WHAT_TO_DO = {RequestError: "change the request", Refusal: "try again later", Failure: "read the server's log"}
_LABEL_VALUES: dict[tuple[str, str], Any] = {
    ("vim_stage_duration_seconds", "stage"): definitions.Stage,
    ("vim_rejected_total", "reason"): Reason,
    ("vim_fetches_total", "outcome"): Outcome,
    ("vim_device_memory_bytes", "kind"): Memory,
    ("vim_colour_profiles_total", "kind"): Kind,
    ("vim_batch_retries_total", "reason"): definitions.Retry,
    ("vim_model_loads_total", "outcome"): definitions.Load,
    ("vim_images_total", "op"): definitions.Op,
    ("vim_images_total", "class"): RequestClass,
    ("vim_queue_wait_seconds", "class"): RequestClass,
    ("vim_queue_depth", "class"): RequestClass,
    ("vim_body_bytes", "class"): RequestClass,
}


def settings_table() -> str:
    """Every field of Settings, by group: variable, default, allowed values, meaning."""
    head = ("Variable", "Default", "Accepts", "Meaning")
    tables = (f"### {group}\n\n{_table(head, map(_setting, names))}\n" for group, names in groups().items())
    return "\n" + "".join(tables)


def _setting(name: str) -> tuple[object, ...]:
    field = Settings.model_fields[name]
    return f"`{variable(name)}`", _default(field.get_default()), allowed(name), field.description


def endpoints_table() -> str:
    """Every path the application answers, with its method."""
    rows = ((f"`{method} {path}`", summary) for method, path, summary in endpoints(create_app(Settings())))
    return _table(("Endpoint", "Answer"), rows)


def options_table() -> str:
    """The options of every operation, as the OpenAPI document has them."""
    operations = create_app(Settings()).openapi()["paths"].items()
    rows = [
        (f"`{path}`", f"`{one['name']}`", _default(one["schema"].get("default")), one.get("description", ""))
        for path, methods in operations
        for operation in methods.values()
        for one in operation.get("parameters", ())
        if one["in"] == "query"
    ]
    return _table(("Endpoint", "Option", "Default", "Meaning"), rows)


def errors_table() -> str:
    """Every error a client can meet."""
    rows = (
        (error.status, f"`{error.code}`", _summary(error), _advice(error))
        for error in sorted(all_errors(), key=lambda error: (error.status, error.code))
    )
    return _table(("Status", "Code", "Meaning", "What to do"), rows)


def metrics_table() -> str:
    """Every metric of ours, with its labels and the values of those that take a fixed few."""
    rows = ((f"`{one.name}`", one.kind, _labels(one), one.help) for one in definitions.METRICS)
    return _table(("Metric", "Kind", "Labels", "Meaning"), rows)


def models_table() -> str:
    """The released models by name."""
    rows = ((f"`{one.name}`", f"`{one.repo}`", f"`{one.file}`") for one in RELEASED.values())
    return _table(("Name", "Repository", "File"), rows)


def clients_table() -> str:
    """The clients that `make test-clients` runs."""
    rows = ((f"`{one.name}`", one.version, one.calls) for one in CLIENTS)
    return _table(("Client", "Version", "What is called"), rows)


def gpu_table() -> str:
    """What `bench.gpu` has measured on a GPU; nothing before it has."""
    results = ROOT / "bench" / "results" / "gpu.json"
    data = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"about": {"dry_run": True}}
    return "" if data["about"]["dry_run"] else measured(data)


def figures_table() -> str:
    """The figures of the README, from the results of `bench.cpu` and `bench.service`."""
    cpu, service = (
        json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("cpu", "service")
    )
    alone, one, many = cpu["224 px, batch 1"]["median_ms"], service["one_client"], service["many_clients"]
    rows = (
        ("One image, model only", f"{alone['numba']} ms"),
        ("The same with plain torch", f"{alone['torch']} ms"),
        ("The same with the reference scan of mamba-ssm", f"{alone['selective_scan_ref']} ms"),
        ("One client over HTTP, decoding included", f"{one['service_ms']} ms"),
        (f"{many['clients']} clients over HTTP", f"{many['images_per_s']:g} images/s"),
    )
    return _table(("`vim-tiny`, 224 px, float32, 2 CPU cores (Intel Xeon), " + cpu["date"], "Median"), rows)


def limits_table() -> str:
    """The limits that are settings."""
    rows = (
        (
            f"`{variable(name)}`",
            _default(Settings.model_fields[name].get_default()),
            Settings.model_fields[name].description,
        )
        for name in _LIMITS
    )
    return _table(("Setting", "Default", "Meaning"), rows)


def fixed_limits_table() -> str:
    """The limits that no setting changes, with the code of the error."""
    return _table(
        ("What", "Limit", "Error"), ((what, f"{limit:,}", f"`{code}`") for what, limit, code in _FIXED_LIMITS)
    )


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "models": models_table,
    "endpoints": endpoints_table,
    "options": options_table,
    "errors": errors_table,
    "metrics": metrics_table,
    "clients": clients_table,
    "gpu": gpu_table,
    "figures": figures_table,
    "limits": limits_table,
    "fixed-limits": fixed_limits_table,
}


def endpoints(app: FastAPI) -> list[tuple[str, str, str]]:
    """(method, path, summary) of every route, FastAPI's own pages last."""
    found = [
        (method, str(route.path), _PAGES.get(str(route.path)) or _summary(route.endpoint))
        for route in iter_route_contexts(app.routes)
        for method in sorted((route.methods or set()) - {"HEAD"})
        if (route.include_in_schema or route.path in _PAGES) and route.path not in _HELPERS
    ]
    return sorted(found, key=lambda one: one[1] in _PAGES)


def response_model(path: str) -> type[BaseModel]:
    """The schema of a path's answer."""
    routes = iter_route_contexts(create_app(Settings()).routes)
    model: type[BaseModel] = next(route.response_model for route in routes if route.path == path)
    return model


def block(name: str) -> tuple[Path, str]:
    """The document that has the block of this name, and what is in it. Raises SystemExit unless there is one."""
    pattern = re.compile(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", re.DOTALL)
    found = [(path, match[1]) for path in DOCUMENTS for match in pattern.finditer(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} documents have a block <!-- {name} --> ... <!-- /{name} -->")
    return found[0]


def rewrite() -> None:
    """Write every table as the code has it."""
    for name, make in TABLES.items():
        path, old = block(name)
        text = path.read_text(encoding="utf-8")
        before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        path.write_text(text.replace(before + old + after, before + make() + after), encoding="utf-8")


def _labels(metric: definitions.Metric) -> str:
    return "; ".join(_label(metric.name, label) for label in metric.labels)


def _label(metric: str, label: str) -> str:
    kind = _LABEL_VALUES.get((metric, label))
    return f"`{label}`: {', '.join(get_args(kind))}" if kind else f"`{label}`"


def _advice(error: type[Exception]) -> str:
    return next(advice for base, advice in _WHAT_TO_DO.items() if issubclass(error, base))


def _summary(documented: object) -> str:
    """The docstring's first paragraph on one line."""
    return " ".join((documented.__doc__ or "").strip().partition("\n\n")[0].split())


def _default(value: object) -> str:
    text = field_words.shown(value)
    return "unset" if text is None else f"`{text}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


if __name__ == "__main__":
    rewrite()
