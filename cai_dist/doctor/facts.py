"""What is to be known about one machine, and how it is found out: no judgement here (`cai_dist.doctor.checks`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from cai_dist.config.threads import usable_cpus

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "peft", "vllm", "wandb")
"""Those whose versions are shown; vllm and wandb may be missing."""
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One device as torch sees it."""

    name: str
    gib: float


@dataclass(frozen=True)
class Gpus:
    """`cuda`: version that torch was built for, "" for a CPU build; `driver_cuda`: the newest that the driver can do;
    `device_files`: /dev/nvidiaN; `problem`: why torch sees none of them, where it said so."""

    devices: tuple[Gpu, ...] = ()
    cuda: str = ""
    driver_cuda: str = ""
    nccl: str = ""
    device_files: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Folder:
    """`problem` "" means that a file could be written and read back; `free_gib` of its disk."""

    label: str
    path: str
    problem: str = ""
    free_gib: float = 0.0


@dataclass(frozen=True)
class NodeFacts:
    """One machine. Sizes in GiB; `shm_gib` is None where there is no /dev/shm; `cpus` are those this process may use;
    `token` is a short hash of RAY_AUTH_TOKEN, "" without one; `code` a hash of this package's source."""

    node: str
    versions: Mapping[str, str]
    code: str = ""
    compiler: str = ""
    gpus: Gpus = Gpus()
    shm_gib: float | None = None
    open_files: int = 0
    memory_gib: float = 0.0
    free_memory_gib: float = 0.0
    cpus: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    interfaces: tuple[str, ...] = ()
    token: str = ""
    port_problem: str = ""
    folders: tuple[Folder, ...] = ()


ENVIRONMENT = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_AUTH_MODE")


def collect(node: str, folders: Sequence[tuple[str, str]]) -> NodeFacts:
    """The facts of this machine (imports torch: seconds). `folders`: (label, path) of what must be writable here."""
    total, free = memory_gib()
    return NodeFacts(
        node=node,
        versions=versions(),
        code=code_hash(),
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or "",
        gpus=_gpus(),
        shm_gib=shutil.disk_usage("/dev/shm").total / GIB if os.path.isdir("/dev/shm") else None,
        open_files=_open_files(),
        memory_gib=total,
        free_memory_gib=free,
        cpus=usable_cpus(),
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        token=token_hash(),
        port_problem=_port_problem(),
        folders=tuple(probe_folder(label, path) for label, path in folders),
    )


def versions() -> dict[str, str]:
    """Python and those of PACKAGES that are installed; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def code_hash() -> str:
    """Eight digits that change with any Python file of this package: two checkouts of one version may differ."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def token_hash() -> str:
    """Enough of a hash to compare tokens, too little to guess one; "" where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and path:
        with contextlib.suppress(OSError):
            token = Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return hashlib.sha256(token.encode()).hexdigest()[:8] if token else ""


def memory_gib() -> tuple[float, float]:
    """(total, free) of this machine, or of the container where that has less (cgroup v2)."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total / GIB, free / GIB


def probe_folder(label: str, path: str) -> Folder:
    """Write a file, read it back, remove it. A folder that is still to be made is probed where it would be made."""
    here = Path(path).absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    probe = here / f".cai-dist-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        try:
            probe.write_bytes(b"doctor")
            problem = "" if probe.read_bytes() == b"doctor" else "a file reads back other than it was written"
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(here).free / GIB
    except OSError as error:
        return Folder(label, str(here), error.strerror or type(error).__name__)
    return Folder(label, str(here), problem, free)


def _gpus() -> Gpus:
    files = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
    import torch

    try:
        devices = tuple(
            Gpu(found.name, found.total_memory / GIB)
            for found in (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        )
        if not torch.cuda.is_available():
            return Gpus((), torch.version.cuda or "", device_files=files)
        return Gpus(devices, torch.version.cuda or "", _driver_cuda(torch), _nccl(torch), files)
    except (RuntimeError, AssertionError) as error:  # a driver that is too old or does not answer
        return Gpus((), torch.version.cuda or "", device_files=files, problem=" ".join(str(error).split())[:200])


def _driver_cuda(torch: Any) -> str:
    number = int(torch._C._cuda_getDriverVersion())  # 13000 is 13.0
    return f"{number // 1000}.{number % 1000 // 10}"


def _nccl(torch: Any) -> str:
    with contextlib.suppress(RuntimeError, AttributeError, TypeError):
        return ".".join(str(part) for part in torch.cuda.nccl.version())
    return ""


def _open_files() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**31


def _port_problem() -> str:
    try:
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
