"""The files for Ray's cluster launcher and for KubeRay fit their schemas, and say what a run needs."""

from __future__ import annotations

import copy
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cai_dist.cli import main as cli
from cai_dist.config.loading.load import load_run

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "tests/ray_job/kuberay_schema.yaml").read_text(encoding="utf-8"))


def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "launch/ray_cluster.yaml").read_text(encoding="utf-8"))


def kuberay() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((ROOT / "launch/kuberay.yaml").read_text(encoding="utf-8")))
    return {one["kind"]: one for one in found}


def clusters() -> list[dict[str, Any]]:
    return [kuberay()["RayJob"]["spec"]["rayClusterSpec"], kuberay()["RayCluster"]["spec"]]


def test_the_cluster_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(launcher())
    validate_config(config)
    # Every machine joins, and none is taken away again.
    machines = len(launcher()["provider"]["worker_ips"])
    kind = config["available_node_types"][config["head_node_type"]]
    assert (kind["min_workers"], kind["max_workers"], config["max_workers"]) == (machines,) * 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(launcher() | {"no_such_key": 1}))


def test_the_launchers_nodes_have_a_token_and_time_to_save() -> None:
    head, worker = (launcher()[key][-1] for key in ("head_start_ray_commands", "worker_start_ray_commands"))
    for line in (head, worker):
        assert {"RAY_AUTH_MODE=token", "ulimit"} <= set(shlex.split(line))
        assert "RAY_AUTH_TOKEN_PATH=" in line
    assert "RAY_JOB_STOP_WAIT_TIME_S=600" in head and "--include-dashboard=true" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "RayJob", "RayCluster"])
def test_kuberay_documents_fit_the_schema(kind: str) -> None:
    jsonschema.validate(kuberay()[kind], SCHEMA)


def test_the_schema_refuses_what_kubernetes_would_drop_or_refuse() -> None:
    def wrong(change: Any) -> None:
        document = copy.deepcopy(kuberay()["RayJob"])
        change(document["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)

    wrong(lambda spec: spec.update(backOffLimit=3))
    wrong(lambda spec: spec.pop("entrypoint"))
    wrong(lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"))
    wrong(lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}))
    wrong(lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokens"))
    wrong(lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"))


def test_pods_have_what_a_run_needs() -> None:
    claim = kuberay()["PersistentVolumeClaim"]["metadata"]["name"]
    for cluster in clusters():
        assert cluster["rayVersion"] == metadata.version("ray")
        assert cluster["authOptions"] == {"mode": "token"}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim


def test_the_kubernetes_jobs_command_is_one_of_ours_with_a_run_file_that_is_there() -> None:
    spec = kuberay()["RayJob"]["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:4] == ["python", "-m", "cai_dist", "run"] and words[-1] == "cluster.address=auto"
    arguments = cli._parser().parse_args(words[3:])
    assert load_run(str(ROOT / arguments.file), arguments.overrides).runs_dir == "/shared/runs"
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "600"
