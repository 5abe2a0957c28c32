"""A real Slurm on this machine: munged, slurmctld and several slurmd below one folder, on loopback, and its jobs."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")
CPUS, GPUS, MEMORY = 16, 4, 64000
"""Of each node, as Slurm believes (`config_overrides`); memory in MB."""
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")

_CONF = """\
ClusterName=cai
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/pid/slurmctld
SlurmdPidFile={base}/pid/slurmd.%n
SlurmctldLogFile={base}/log/slurmctld
SlurmdLogFile={base}/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=10
MinJobAge=3600
FirstJobId={first_job}
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MailProg=/bin/true
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF
"""


def missing_daemons() -> list[str]:
    """The programs of Slurm that are not installed here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in DAEMONS if shutil.which(name, path=path) is None]


@dataclass(frozen=True)
class Job:
    """How a job stands, as `scontrol show job` has it."""

    state: str
    exit_code: str
    """CODE:SIGNAL"""
    restarts: int
    reason: str


def until(what: str, true: Callable[[], object], seconds: float, pause: float = 0.2) -> None:
    """Wait for `true`; raises TimeoutError with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


class SlurmCluster:
    """`up()` to `down()`; nodes are called node0, node1, …; `gpus` is true where they have pretended GPUs (null
    devices, which only root can make).

    The ports come from the process id, so that two of these can live beside each other. `grace`: seconds that a
    preempted job of the partition `main` has left after USR1; jobs of the partition `high` preempt.
    """

    def __init__(self, base: Path, nodes: int, grace: int = 120) -> None:
        self.base, self.names, self._grace = base, [f"node{index}" for index in range(nodes)], grace
        self.gpus = os.geteuid() == 0
        self._daemons: list[int] = []
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "RAY_"))},
            "SLURM_CONF": str(base / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "VENV": sys.prefix,
            "RAY_FLAT": "1",
            "RAY_LOGS": str(base / "ray"),
            "OMP_NUM_THREADS": "1",
        }

    # ---- the daemons

    def up(self) -> None:
        """Start all of it; raises TimeoutError if the nodes are not idle within a minute."""
        for folder in ("munge", "state", "pid", "log", "dev", "jobs", *(f"spool/{name}" for name in self.names)):
            (self.base / folder).mkdir(parents=True)
        (self.base / "munge").chmod(0o711)
        key = self.base / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._configure()
        munge = self.base / "munge"
        self._daemon(
            "munged", "--force", f"--key-file={key}", f"--socket={munge}/socket", f"--pid-file={self.base}/pid/munged",
            f"--log-file={self.base}/log/munged", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._daemon("slurmctld", "-c")
        for name in self.names:
            self._daemon("slurmd", "-N", name)
        until("all nodes are idle", lambda: self.idle() == len(self.names), 60)

    def down(self) -> None:
        """End all jobs, then all daemons, by the pid files that they wrote."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.call("scancel", f"--user={getpass.getuser()}")
            with contextlib.suppress(TimeoutError):
                until("no job is left", lambda: not self.call("squeue", "--noheader"), 30)
        pids = [int(text) for path in (self.base / "pid").glob("*") if (text := path.read_text().strip()).isdigit()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(self._ours, pids):
                os.kill(pid, number)
            with contextlib.suppress(TimeoutError):
                until("the daemons have ended", lambda: not any(map(self._ours, pids)), 10)

    def idle(self) -> int:
        """Nodes that are idle."""
        return len(self.call("sinfo", "--noheader", "-N", "-p", "main", "-t", "idle", "-o", "%N").split())

    def _ours(self, pid: int) -> bool:
        """Whether this process is a daemon of this cluster: a number may have gone to another process meanwhile."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return str(self.base).encode() in command + environment

    def _daemon(self, *command: str) -> None:
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=False)
        assert result.returncode == 0, f"{command[0]}: {result.stderr}"

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        port = _free_ports(len(self.names) + 1)
        # slurmctld binds what the host's name resolves to, whatever stands behind it in parentheses.
        address = socket.gethostbyname(host)
        gres = f" Gres=gpu:{GPUS}" if self.gpus else ""
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={port + 1 + index} CPUs={CPUS}"
            f" RealMemory={MEMORY}{gres} State=UNKNOWN"
            for index, name in enumerate(self.names)
        ]
        text = _CONF.format(
            base=self.base, host=host, address=address, port=port, user=getpass.getuser(), grace=self._grace,
            first_job=1 + os.getpid() % 900, nodes="\n".join(nodes),
        )  # fmt: skip
        (self.base / "slurm.conf").write_text(text)
        # Needed although no plugin for control groups is used: without it slurmd looks for one and ends in a container.
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        if self.gpus:
            for index in range(GPUS):
                os.mknod(self.base / "dev" / f"gpu{index}", 0o20666, os.makedev(1, 3))
            devices = f"{self.base}/dev/gpu[0-{GPUS - 1}]"
            (self.base / "gres.conf").write_text(f"NodeName={','.join(self.names)} Name=gpu File={devices}\n")

    # ---- jobs

    def call(self, *command: str) -> str:
        """Standard output of one of Slurm's commands."""
        return subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def sbatch(self, *words: str, **env: str) -> str:
        """Submit from the root of the checkout; the number of the job."""
        result = subprocess.run(
            ["sbatch", "--parsable", f"--output={self.base}/jobs/%j.out", *words],
            env={**self.env, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def job(self, number: str) -> Job:
        text = self.call("scontrol", "--oneliner", "show", "job", number)
        fields = dict(re.findall(r"(\w+)=(\S*)", text))
        return Job(fields["JobState"], fields["ExitCode"], int(fields["Restarts"]), fields["Reason"])

    def wait(self, number: str, seconds: float) -> Job:
        """Wait until the job is over: neither between two starts (PENDING) nor with processes that are still ending."""
        try:
            until(f"job {number} is over", lambda: self._over(number), seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.job(number)}; its log:\n{self.log(number)[-3000:]}") from None
        return self.job(number)

    def _over(self, number: str) -> bool:
        states = self.call("squeue", "--noheader", "--states=all", "--jobs", number, "--format=%T").split()
        return self.job(number).state in OVER and "COMPLETING" not in states

    def log(self, number: str) -> str:
        """What the job has written so far."""
        path = self.base / "jobs" / f"{number}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def until_logged(self, number: str, text: str, seconds: float) -> None:
        try:
            until(f"{text!r} in the log of job {number}", lambda: text in self.log(number), seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.job(number)}; its log:\n{self.log(number)[-3000:]}") from None

    def ray_processes(self, number: str) -> list[str]:
        """`PID COMMAND` of each process on this machine that belongs to the Ray of this job: by its environment, by its
        command or by the files that it holds open."""
        marks = (f"CAI_RAY_CLUSTER={number}.".encode(), f"CAI_RAY_NODE={number}.".encode(), f"/cai-{number}.".encode())
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes()
                held = b"\0".join(os.readlink(file).encode() for file in (path / "fd").iterdir())
                if any(mark in command + (path / "environ").read_bytes() + held for mark in marks):
                    found.append(f"{path.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:120]}")
        return found


def broken_ray(folder: Path, node: str) -> None:
    """Make `folder` a virtual environment like this one, but for `ray`, which fails on `node`."""
    (folder / "bin").mkdir(parents=True)
    for name in ("ray", "python", "cai-dist"):
        fails = f'[ "$SLURMD_NODENAME" = {node} ] && {{ echo "no disk here"; exit 1; }}\n' if name == "ray" else ""
        path = folder / "bin" / name
        path.write_text(f'#!/bin/bash\n{fails}exec {sys.prefix}/bin/{name} "$@"\n')
        path.chmod(0o755)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, between 21000 and 22999; which, by the process id."""
    for attempt in range(250):
        first = 21000 + (os.getpid() + attempt) % 250 * 8
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise OSError("no free ports for Slurm's daemons")
