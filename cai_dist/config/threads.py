"""CPU threads of worker processes: as many as the cores leave each of those that compute at the same time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cai_dist.config.run import ClusterConfig, RunConfig


def usable_cpus() -> int:
    """CPUs that the scheduler gives this process, and no more than a container's quota (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cpus = min(cpus, max(1, int(int(quota) / int(period))))
    return cpus


def cpus_for_threads() -> int:
    """CPUs that workers of this machine may share: the usable ones, or fewer where OMP_NUM_THREADS says so. To be asked
    before a cluster is started, which sets that variable for its workers."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable_cpus(), int(said)) if said.isdigit() and int(said) else usable_cpus()


def worker_threads(cluster: ClusterConfig, workers: int, cpus: float, here: int) -> int:
    """Threads of each of `workers` that compute at the same time and ask Ray for `cpus` each; `here`: CPUs of this
    machine. On a cluster that others have started a worker's logical CPUs are its share."""
    if cluster.threads != "auto":
        return cluster.threads
    if cluster.address != "local":
        return max(1, int(cpus))
    return max(1, here // workers)


def role_threads(config: RunConfig, here: int) -> dict[str, int]:
    """Threads of a worker of each role of PPO: what its placement says, or its share of the cores in the phase that is
    its work (rollout, scoring or learning), where the others wait."""
    ppo = config.ppo
    learn: tuple[str, ...] = ppo.trained_roles
    rollout: tuple[str, ...] = ("rollout",)
    if ppo.schedule != "sync":  # samples of the next step are drawn while this one's are learned from
        learn = rollout = (*learn, "rollout")
    score: tuple[str, ...] = tuple(role for role in ("reference", "reward") if role in ppo.roles)
    score += ("reward_terms",) if any(term.own for term in ppo.rewards) else ()
    threads = {}
    for group in (score, rollout, learn):
        counts = {role: ppo.workers_of(role) for role in group}
        if "rollout" in counts:
            counts["rollout"] *= config.engine.processes
        for role in group:
            place = getattr(ppo.placement, role)
            shared = worker_threads(config.cluster, sum(counts.values()), place.cpus, here)
            threads[role] = place.threads or shared
    return threads
