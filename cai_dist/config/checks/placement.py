"""Roles of PPO that share GPUs: what does not go together, found without a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cai_dist.config.placement import RoleShards
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO


def sharing_problems(ppo: PpoConfig) -> Iterator[str]:
    """One line for each contradiction, with the way out."""
    place = ppo.placement
    if place.share and place.mode != "hybrid":
        yield f"ppo.placement.share: only looked at with ppo.placement.mode=hybrid; mode is {place.mode}"
        return
    if place.mode == "hybrid":
        yield from _share_problems(ppo)
    for group in ppo.shared_groups:
        yield from _gpu_problems(ppo, group)
        if ppo.transfer == "broadcast" and {"policy", "rollout"} <= set(group) and place.policy.gpus:
            yield (
                "ppo.transfer=broadcast: must be object_store or cuda_ipc where policy and rollout share a GPU; NCCL "
                "takes no two members of one process group on the same device"
            )
    if ppo.transfer == "cuda_ipc":
        yield from _ipc_problems(ppo)


def engine_problems(config: RunConfig) -> Iterator[str]:
    """One line for each contradiction of engines that are several processes."""
    processes, ppo = config.engine.processes, config.ppo
    if processes == 1:
        return
    said = f"engine.vllm: an engine is {processes} processes (tensor_parallel x pipeline_parallel)"
    runs_ppo = PPO in config.stages
    if runs_ppo and any("rollout" in group for group in ppo.shared_groups):
        yield (
            f"{said}, which share their GPUs with nobody: set ppo.placement.mode=separate, or hybrid without rollout "
            "in ppo.placement.share"
        )
    asked = {"ppo.placement.rollout.gpus": ppo.placement.rollout.gpus} if runs_ppo else {}
    for key, gpus in (asked | {"cluster.gpus": config.cluster.gpus}).items():
        if gpus not in (0, 1):
            yield f"{key}={gpus:g}: must be 0 or 1; {said}, each with so many GPUs"


def placement_warnings(ppo: PpoConfig) -> Iterator[str]:
    """One line for each place of a role that this run has not: a run file may extend one that has it."""
    place, default = ppo.placement, RoleShards()
    for role, why in _absent(ppo):
        if getattr(place, role) != getattr(default, role):
            yield f"ppo.placement.{role}: not looked at, there are no such workers; {why}"
        if place.mode == "hybrid" and any(role in group for group in place.share):
            yield f"ppo.placement.share: {role} in it is not looked at, there are no such workers; {why}"


def _absent(ppo: PpoConfig) -> Iterator[tuple[str, str]]:
    """Roles without workers, and why."""
    if not ppo.defaults.needs_value:
        yield "value", f"ppo.algorithm={ppo.algorithm} has no value model"
    if "reference" not in ppo.roles:
        yield "reference", "with ppo.lora the policy ranks answer with the adapter off"
    if not ppo.rewards_model:
        yield "reward", "ppo.rewards has no preference model"
    if not any(term.own for term in ppo.rewards):
        yield "reward_terms", "ppo.rewards has no term of one's own"


def _ipc_problems(ppo: PpoConfig) -> Iterator[str]:
    """Weights go from process to process on one GPU: each policy rank lends them to one rollout worker."""
    place = ppo.placement
    together = any({"policy", "rollout"} <= set(group) for group in ppo.shared_groups)
    if not together or not place.policy.gpus:
        yield (
            "ppo.transfer=cuda_ipc: policy and rollout must share GPUs (ppo.placement.mode colocated or hybrid, gpus "
            "above 0 for both); else set it to object_store"
        )
    elif ppo.workers_of("rollout") != ppo.policy.ranks:
        yield (
            f"ppo.placement.rollout.workers={ppo.workers_of('rollout')}: must be ppo.policy.ranks={ppo.policy.ranks} "
            "with ppo.transfer=cuda_ipc, so leave it out; each takes its weights from the policy rank on its own GPU"
        )


def _share_problems(ppo: PpoConfig) -> Iterator[str]:
    share = ppo.placement.share
    if not share:
        yield (
            "ppo.placement.share: missing with ppo.placement.mode=hybrid; give groups of roles, such as "
            "[[policy, rollout], [value, reward, reference]]"
        )
    for number, group in enumerate(share):
        if len(set(group)) < 2:
            yield (
                f"ppo.placement.share.{number}={list(group)}: must be two roles or more; a role that shares with "
                "nobody is left out"
            )
    counted = Counter(role for group in share for role in group)
    for role, count in counted.items():
        if count > 1:
            yield f"ppo.placement.share: {role} stands in it {count} times; a role can be in one group, once"


def _gpu_problems(ppo: PpoConfig, group: tuple[str, ...]) -> Iterator[str]:
    """A shared device is one whole GPU, and a group has either GPUs or none."""
    gpus = {role: getattr(ppo.placement, role).gpus for role in group}
    for role, number in gpus.items():
        if number > 1:
            yield (
                f"ppo.placement.{role}.gpus={number:g}: must be at most 1 where the role shares with others; each of "
                "its workers takes its part of one GPU"
            )
    without = [role for role, number in gpus.items() if not number]
    if without and len(without) < len(gpus):
        with_gpu = next(role for role, number in gpus.items() if number)
        yield (
            f"ppo.placement.{without[0]}.gpus=0: shares a GPU with {with_gpu}, so it must be above 0, too; or leave it "
            "out of the group (ppo.placement.mode=hybrid)"
        )
