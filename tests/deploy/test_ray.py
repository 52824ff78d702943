"""deploy/ray on a local Ray, if one is installed (`make test-ray`): load, a killed replica, no lost answers."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "ray"
OWN = ROOT / ".ray" / "bin" / "python"


def interpreter() -> str | None:
    """The Python that has Ray: of its own environment, or this one."""
    if OWN.exists():
        return str(OWN)
    return sys.executable if importlib.util.find_spec("ray") else None


needs_ray = pytest.mark.skipif(interpreter() is None, reason="Ray is not installed (make test-ray)")


def test_the_configuration_names_what_is_there() -> None:
    """The configuration names an existing builder and arguments that it accepts."""
    (application,) = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"]
    module, _, function = application["import_path"].partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    options = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    known = {str(getattr(node.target, "id", "")) for node in options.body if isinstance(node, ast.AnnAssign)}

    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert application["args"].keys() <= known


@needs_ray
@pytest.mark.slow
def test_a_killed_replica_costs_its_clients_nothing_but_another_try() -> None:
    """After SIGKILL of one of two replicas all answers arrive and no device process is left."""
    command = [str(interpreter()), "-m", "tests.deploy.ray_drill", "--model", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])

    assert ([], 0, 0) == (seen["lost"], seen["wrong"], seen["orphans"])
    assert 0 < seen["before"] < seen["answered"]


@needs_ray
def test_ray_takes_the_configuration() -> None:
    """Ray accepts the configuration; the application asks for a GPU if there is one and queues itself."""
    code = (
        "import yaml, ray; from ray.serve.schema import ServeDeploySchema\n"
        "ServeDeploySchema.parse_obj(yaml.safe_load(open('deploy/ray/serve.yaml')))\n"
        "from deploy.ray.app import Options, VisionMamba, build\n"
        "seen = []\n"
        "for gpus in (0, 4):\n"
        "    ray.cluster_resources = lambda: {'GPU': gpus}\n"
        "    one = build(Options())._bound_deployment\n"
        "    seen.append(one.ray_actor_options['num_gpus'])\n"
        "print(seen, one.max_queued_requests)\n"
    )
    done = subprocess.run([str(interpreter()), "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert "[0.0, 1.0] -1" == done.stdout.strip().splitlines()[-1], done.stderr[-2000:]
