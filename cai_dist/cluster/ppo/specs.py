"""What the roles of PPO are started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cai_dist.cluster.placement import GroupSpec
from cai_dist.config.engine import EngineConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import Dtype, ExportConfig, HeadDtype, Layout
from cai_dist.data.thoughts import NO_THOUGHTS, ThoughtIds
from cai_dist.errors import ConfigError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.types import WorkerSpec
from cai_dist.workers.prompt_table import PromptTable


@dataclass(frozen=True)
class PpoModels:
    """Model folders or hub names of the roles."""

    policy: str
    """Where the policy starts; the rollout workers take the architecture from it."""
    reference: str
    """Not looked at with `ppo.lora`: the policy without its adapter is the reference."""
    reward: str
    """A saved preference model."""
    value: str
    """Trunk of the value model: the preference model (its head is kept) or a causal LM (a new head). Not looked at by
    an algorithm without one."""


def ppo_specs(
    ppo: PpoConfig,
    models: PpoModels,
    *,
    dtype: Dtype,
    layout: Layout,
    head_dtype: HeadDtype,
    export: ExportConfig,
    end_id: int,
    thoughts: ThoughtIds = NO_THOUGHTS,
    policy_steps: int,
    value_steps: int,
    seed: int,
    timeouts: TimeoutsConfig,
    threads: Mapping[str, int],
    engine: EngineConfig,
    prompts: PromptTable | None = None,
) -> list[GroupSpec]:
    """The groups of the roles that the algorithm needs; arguments as of `cai_dist.cluster.ppo.groups.PpoGroups`. Raises
    ConfigError for an environment without `prompts`."""
    talk: dict[str, Any] = {}
    if ppo.environment is not None:
        if prompts is None:
            raise ConfigError("ppo.environment: needs the prompts in words")
        talk = {"conversations": (ppo.environment, prompts)}
    common = {"dtype": dtype}
    scoring = common | {"layout": layout, "timeouts": timeouts}
    head = {"head_dtype": head_dtype}
    trained = scoring | {"seed": seed, "training": engine.training}
    kwargs: dict[str, dict[str, Any]] = {
        "policy": trained | head | {"export": export} | _policy_kwargs(ppo, models, policy_steps),
        "value": trained | _value_kwargs(ppo, models, value_steps),
        "reference": scoring | head | {"model": models.reference, "sharding": ppo.scoring("reference")},
        "reward": scoring
        | {"model": models.reward, "end_id": end_id, "thoughts": thoughts, "sharding": ppo.scoring("reward")},
        "rollout": common
        | talk
        | {"model": models.policy, "engine": engine, "require_sync": True}
        | {"tolerance": ppo.transfer_tolerance},
    }
    return [role_spec(role, ppo, engine, kwargs[role] | {"threads": threads.get(role, 1)}) for role in ppo.roles]


def _policy_kwargs(ppo: PpoConfig, models: PpoModels, steps: int) -> dict[str, Any]:
    return {
        "model": models.policy,
        "ppo": ppo,
        "optimizer": ppo.policy_optimizer,
        "lora": ppo.lora,
        "sharding": ppo.policy,
        "total_steps": steps,
        "objective": PolicyObjective(
            clip=ppo.clip,
            clip_high=ppo.clip_high,
            dual_clip=ppo.dual_clip,
            kl=ppo.kl_estimator if ppo.kl_where == "loss" else None,
            entropy=ppo.entropy_bonus,
            ratio=ppo.defaults.ratio,
        ),
        "temperature": ppo.sampling.temperature,
    }


def _value_kwargs(ppo: PpoConfig, models: PpoModels, steps: int) -> dict[str, Any]:
    return {
        "model": models.value,
        "optimizer": ppo.value_optimizer,
        "lora": ppo.lora,
        "sharding": ppo.value,
        "total_steps": steps,
        "value_clip": ppo.value_clip,
    }


def role_spec(role: str, ppo: PpoConfig, engine: EngineConfig, kwargs: dict[str, Any]) -> GroupSpec:
    """The group of one role: workers, their processes, CPUs and GPUs from the configuration alone, `kwargs` for its
    workers."""
    placement = getattr(ppo.placement, role)
    trained = role in ppo.trained_roles
    return GroupSpec(
        role=role,
        spec=WorkerSpec(
            role,
            kwargs,
            # Who works ahead has an iteration's time for it.
            yields=ppo.looks_ahead and not trained,
        ),
        workers=ppo.workers_of(role),
        cpus=placement.cpus,
        gpus=placement.gpus,
        distributed=trained or ppo.scoring(role) is not None,
        share=next((group[0] for group in ppo.shared_groups if role in group), ""),
        processes=engine.processes if role == "rollout" else 1,
    )
