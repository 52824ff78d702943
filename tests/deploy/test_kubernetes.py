"""The Kubernetes manifests: valid as kustomize renders them, and true to what the service does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import Settings
from service.telemetry.definitions import METRICS
from tests.deploy.dockerfile import ROOT, last, tool
from tools.doc_tables import endpoints

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
COMPONENTS = ("podmonitor", "keda", "prometheus-adapter")
KUBECTL = shutil.which("kubectl")
VALIDATE = tool("kubernetes-validate")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="no kubectl (Debian: kubernetes-client)")


def documents(text: str) -> list[dict[str, Any]]:
    """Every document of a YAML stream."""
    return [one for one in yaml.safe_load_all(text) if one]


def read(name: str) -> dict[str, Any]:
    """The only document of a file below deploy/kubernetes."""
    (found,) = documents((KUBERNETES / name).read_text())
    return found


def rendered(folder: Path) -> str:
    """What `kubectl apply -k` would send."""
    run = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def with_component(directory: Path, overlay: str, component: str) -> Path:
    """A copy of an overlay to which a component is added."""
    shutil.copytree(KUBERNETES, directory / "kubernetes")
    folder = directory / "kubernetes" / "overlays" / overlay
    with (folder / "kustomization.yaml").open("a") as file:
        file.write(f"components:\n  - ../../components/{component}\n")
    return folder


def check_valid(text: str, directory: Path) -> None:
    """Validate rendered manifests under the strict Kubernetes schemas."""
    file = directory / "all.yaml"
    file.write_text(text)
    run = subprocess.run([str(VALIDATE), "--strict", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every pod with its server container."""
    deployment = read("base/deployment.yaml")["spec"]["template"]["spec"]
    kserve = read("kserve/inferenceservice.yaml")["spec"]["predictor"]
    for name, pod in (("deployment", deployment), ("kserve", kserve)):
        (container,) = pod["containers"]
        yield name, pod, container


POD = pytest.mark.parametrize(("pod", "container"), [(p, c) for _, p, c in pods()], ids=[n for n, _, _ in pods()])


@needs_kubectl
@pytest.mark.skipif(VALIDATE is None, reason="kubernetes-validate is not installed (extra: deploy)")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str, tmp_path: Path) -> None:
    """Each rendered overlay is valid under the strict Kubernetes schemas, without unknown fields."""
    text = rendered(KUBERNETES / "overlays" / overlay)
    check_valid(text, tmp_path)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} == {one["kind"] for one in documents(text)}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_selects_the_pods(overlay: str) -> None:
    """Deployment, Service, disruption budget and network policy select the same label."""
    label = {"app.kubernetes.io/name": "vision-mamba"}
    found = {one["kind"]: one["spec"] for one in documents(rendered(KUBERNETES / "overlays" / overlay))}

    assert label == found["Deployment"]["selector"]["matchLabels"]
    assert label == found["Deployment"]["template"]["metadata"]["labels"]
    assert label == found["Service"]["selector"]
    assert label == found["PodDisruptionBudget"]["selector"]["matchLabels"]
    assert label == found["NetworkPolicy"]["podSelector"]["matchLabels"]


@needs_kubectl
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_goes_into_an_overlay(component: str, tmp_path: Path) -> None:
    """A component adds its resource; an autoscaler also removes the fixed number of replicas."""
    found = {one["kind"]: one for one in documents(rendered(with_component(tmp_path, "cpu", component)))}

    assert found.keys() & {"PodMonitor", "ScaledObject", "HorizontalPodAutoscaler"}
    assert (component == "podmonitor") == ("replicas" in found["Deployment"]["spec"])


@needs_kubectl
@pytest.mark.skipif(VALIDATE is None, reason="kubernetes-validate is not installed (extra: deploy)")
def test_the_component_grpc_opens_its_port(tmp_path: Path) -> None:
    """With the component grpc, setting, port, probe, network policy and a headless Service agree on one port."""
    text = rendered(with_component(tmp_path, "gpu", "grpc"))
    check_valid(text, tmp_path)
    found = {(one["kind"], one["metadata"]["name"]): one["spec"] for one in documents(text)}
    (container,) = found["Deployment", "vision-mamba"]["template"]["spec"]["containers"]
    service = found["Service", "vision-mamba-grpc"]
    (port,) = service["ports"]

    assert {"name": "grpc", "containerPort": 8001} in container["ports"]
    assert 8001 == Settings.load({one["name"]: one["value"] for one in container["env"]}).grpc_port
    assert {"port": 8001} == container["readinessProbe"]["grpc"]
    assert "httpGet" not in container["readinessProbe"]
    assert {"port": "grpc"} in found["NetworkPolicy", "vision-mamba"]["ingress"][0]["ports"]
    assert ("None", 8001, "grpc") == (service["clusterIP"], port["port"], port["targetPort"])
    assert found["Deployment", "vision-mamba"]["selector"]["matchLabels"] == service["selector"]


@POD
def test_settings_are_settings(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The server accepts every setting of the manifests and of the GPU overlay."""
    overlay = read("overlays/gpu/deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    environ = {one["name"]: one["value"] for one in [*container["env"], *overlay["env"]]}

    Settings.load(environ)
    assert pod["enableServiceLinks"] is False


@POD
def test_probes_ask_what_exists(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Each probe uses an endpoint that exists, on the port where the container listens."""
    paths = {path for method, path, _ in endpoints(create_app(Settings())) if method == "GET"}
    port = container["ports"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] in (port["name"], port["containerPort"])
    assert "/livez" == container["livenessProbe"]["httpGet"]["path"]
    assert "/readyz" == container["readinessProbe"]["httpGet"]["path"]


@POD
def test_there_is_time_to_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The grace period is longer than preStop, the drain and the end of the device process together."""
    settings = Settings()
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = (settings.drain_delay_ms + settings.drain_timeout_ms) / 1000

    assert pod["terminationGracePeriodSeconds"] > sleep + drain + 5


@POD
def test_a_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """A pod has the user of the Dockerfile, a read-only root, no capabilities and no token."""
    security = container["securityContext"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert last("cpu", "USER") == "{runAsUser}:{runAsGroup}".format_map(pod["securityContext"])
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"]
    assert security["readOnlyRootFilesystem"] is True
    assert ["ALL"] == security["capabilities"]["drop"]
    assert security["allowPrivilegeEscalation"] is False
    assert pod["automountServiceAccountToken"] is False
    assert {"/cache", "/tmp"} == {one["mountPath"] for one in container["volumeMounts"]}


def test_the_autoscalers_agree() -> None:
    """KEDA and the plain autoscaler use the same metric, target value and bounds."""
    keda, plain = (
        read("components/keda/scaledobject.yaml")["spec"],
        read("components/prometheus-adapter/autoscaler.yaml")["spec"],
    )
    (trigger,), (metric,) = keda["triggers"], plain["metrics"]

    assert "prometheus" == trigger["type"]
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (plain["minReplicas"], plain["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == plain["behavior"]
    name = metric["pods"]["metric"]["name"]
    assert name in {one.name for one in METRICS}
    assert name in trigger["metadata"]["query"]
    (rule,) = read("components/prometheus-adapter/rules.yaml")["rules"]["custom"]
    assert name == rule["name"]["matches"]


def test_custom_resources_have_the_fields_that_their_operators_read() -> None:
    """The custom resources have the API version and the fields that their operators read."""
    monitor = read("components/podmonitor/podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert ("monitoring.coreos.com/v1", "http", "/metrics") == (
        monitor["apiVersion"],
        endpoint["port"],
        endpoint["path"],
    )
    assert ("keda.sh/v1alpha1", "vision-mamba") == (
        read("components/keda/scaledobject.yaml")["apiVersion"],
        read("components/keda/scaledobject.yaml")["spec"]["scaleTargetRef"]["name"],
    )
    service = read("kserve/inferenceservice.yaml")
    assert "serving.kserve.io/v1beta1" == service["apiVersion"]
    (container,) = service["spec"]["predictor"]["containers"]
    assert "kserve-container" == container["name"]
    assert 8001 == Settings.load({one["name"]: one["value"] for one in container["env"]}).grpc_port
    assert [("http1", 8000), ("grpc-port", 8001)] == [(one["name"], one["containerPort"]) for one in container["ports"]]


def test_the_service_is_not_called_vim() -> None:
    """The Service has another name than `vim`, which would set VIM_PORT in other pods."""
    assert not read("base/service.yaml")["metadata"]["name"].startswith("vim")
