"""Prometheus, its rules and the dashboard, checked by the real tools and with a real server under load."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.telemetry.definitions import METRICS
from tests.deploy.dockerfile import ROOT
from tests.e2e.server import serving
from tests.tiny import photo, write_tiny_model

FOLDER = ROOT / "deploy" / "observability"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool (Debian: prometheus)")
PATIENCE_S = 90
_COMPARISON = re.compile(r"\s(==|>|<)\s[\d.]+$")


def rules() -> list[dict[str, Any]]:
    """All rules of all groups."""
    groups = yaml.safe_load((FOLDER / "rules" / "vim.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> list[dict[str, Any]]:
    """The panels of the dashboard."""
    file = FOLDER / "grafana" / "dashboards" / "vision-mamba.json"
    panels: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    return panels


def expressions() -> dict[str, str]:
    """The expression of each rule and panel; of an alert without its comparison, which is empty until it fires."""
    asked = {rule.get("record") or rule["alert"]: _COMPARISON.sub("", rule["expr"].strip()) for rule in rules()}
    for panel in dashboard():
        for target in panel["targets"]:
            asked[f"{panel['title']} {target['refId']}"] = target["expr"].replace("$job", ".*").replace("$model", ".*")
    return asked


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Reading the dashboard into Grafana's own types and writing it again loses no field."""
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs the extra: deploy")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    written = json.loads((FOLDER / "grafana" / "dashboards" / "vision-mamba.json").read_text())
    again = json.loads(JSONEncoder().encode(sdk.Dashboard.from_json(written)))

    assert [] == list(lost(written, again))
    assert 19 == len(again["panels"])


def lost(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Paths into the first that are not, or are not the same, in the second."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name, value in one.items():
            yield from lost(value, other[name], f"{path}/{name}") if name in other else [f"{path}/{name}"]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from lost(a, b, f"{path}/{number}")
    elif one != other:
        yield path


def test_a_field_that_grafana_does_not_know_is_found() -> None:
    """The comparison finds a misspelt field and a changed value."""
    assert ["/panels/0/tilte", "/uid"] == sorted(lost({"uid": 1, "panels": [{"tilte": 1}]}, {"uid": 2, "panels": [{}]}))


@needs_promtool
@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules rules/tests.yml"])
def test_promtool_agrees(command: str) -> None:
    """promtool accepts the configuration, and the unit tests of the rules pass."""
    run = subprocess.run([str(PROMTOOL), *command.split()], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_is_tested_and_has_a_runbook_entry() -> None:
    """Every alert has a unit test and a heading in the runbook, which its annotation links to."""
    headings = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "operate" / "runbook.md").read_text(), re.MULTILINE))
    tested = (FOLDER / "rules" / "tests.yml").read_text()
    alerts = [rule for rule in rules() if "alert" in rule]

    assert headings == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert f"docs/operate/runbook.md#{rule['alert'].lower()}" == rule["annotations"]["runbook"]
        assert f"alertname: {rule['alert']}" in tested


def test_only_metrics_that_exist_are_asked_for() -> None:
    """Rules and panels use only metrics of the server and series that a rule records."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = {one.name for one in METRICS}
    for title, expression in expressions().items():
        for name in re.findall(r"\b(?:job:)?vim_\w+(?::\w+)?", expression):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in recorded or plain in known, f"{title}: {name}"


def test_panels_do_not_overlap_and_name_their_source() -> None:
    """Panels lie on Grafana's 24 columns without overlap, each with a description and data source."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        assert panel["description"]
        assert "prometheus" == panel["datasource"]["uid"]
    sources = yaml.safe_load((FOLDER / "grafana" / "datasources" / "prometheus.yml").read_text())
    assert ["prometheus"] == [one["uid"] for one in sources["datasources"]]


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[httpx.Client]:
    """Debian's Prometheus with our configuration, but for the address and shorter intervals."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules" / "vim.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = (directory / "prometheus.log").open("wb")
    arguments = {
        "config.file": directory / "prometheus.yml",
        "storage.tsdb.path": directory / "data",
        "web.listen-address": "127.0.0.1:0",
    }
    process = subprocess.Popen([str(PROMETHEUS), *(f"--{k}={v}" for k, v in arguments.items())], stderr=log)
    try:
        with httpx.Client(base_url=_address(directory / "prometheus.log"), timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _address(log: Path) -> str:
    """The address that Prometheus logs: it takes a free port."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := re.search(r'msg="Listening on" address=(127\.0\.0\.1:[1-9]\d*)', log.read_text()):
            return f"http://{found[1]}"
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _load(url: str, stop: threading.Event) -> None:
    """Good requests, a bad one, and one that cannot be answered in time."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            for path in ("/v1/classify", "/v1/embed"):
                client.post(path, content=photo())
            client.post("/v1/classify", content=b"no image")
            client.post("/v1/classify", content=photo(size=(3000, 2000)), headers={"X-Request-Timeout-Ms": "1"})


def _answers(client: httpx.Client, expression: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert "success" == answer["status"], f"{expression}: {answer}"
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus (Debian: prometheus)")
def test_every_expression_returns_data_from_a_server_under_load(tmp_path: Path) -> None:
    """Every rule and panel returns data from a Prometheus that scrapes a server under load."""
    waiting = expressions()
    stop = threading.Event()
    with (
        serving(tmp_path, model=write_tiny_model(tmp_path / "tiny")) as server,
        prometheus(tmp_path, server.url.removeprefix("http://")) as client,
    ):
        load = threading.Thread(target=_load, args=(server.url, stop))
        load.start()
        deadline = time.monotonic() + PATIENCE_S
        while waiting and time.monotonic() < deadline:
            time.sleep(1)
            waiting = {title: one for title, one in waiting.items() if not _answers(client, one)}
        stop.set()
        load.join()
    assert {} == waiting
