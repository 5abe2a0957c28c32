"""Workers whose ranks compute packed rows together, on DeepSpeed's engine; run by `tests.two_ranks`, on one rank for
what they must be equal to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import LoraConfig, OptimizerConfig, ShardingConfig
from cai_dist.data.schedule import plan_items
from cai_dist.losses.policy import PolicyObjective
from cai_dist.models.tensors import from_numpy
from cai_dist.types import Generation, LabelledPair, RankInfo, StepShard, TokenSequence, Trajectory
from cai_dist.workers.dpo import DpoWorker
from cai_dist.workers.language import LanguageWorker
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.preference import PreferenceWorker, PretrainingWorker
from cai_dist.workers.rating import RatingWorker
from cai_dist.workers.value import ValueWorker
from tests import examples

SECONDS = 120.0
TEMPERATURE = 0.7
_POLICY = partial(
    PolicyWorker,
    objective=PolicyObjective(0.2, clip_high=0.3, dual_clip=3.0, kl="k3", entropy=0.05),
    temperature=TEMPERATURE,
    ppo=PpoConfig(),
)
ROLES: dict[str, tuple[Callable[..., Any], Callable[[random.Random, int], Sequence[Any]]]] = {
    "sft": (LanguageWorker, lambda rng, count: _sequences(rng, count)),
    "preference": (PreferenceWorker, examples.pairs),
    "pretraining": (partial(PretrainingWorker, language_weight=0.5), lambda rng, count: _labelled(rng, count)),
    "rating": (RatingWorker, examples.rated),
    "dpo": (partial(DpoWorker, loss="dpo", beta=0.3), examples.dpo_pairs),
    "policy": (_POLICY, examples.trajectories),
    "value": (partial(ValueWorker, value_clip=0.2), examples.trajectories),
}


def jobs_of(info: RankInfo, jobs: list[dict[str, Any]], folder: str) -> None:
    """Each job in turn: its `name`, and what `trained` takes beside. Rank 0 leaves the results in `folder`/NAME.pt."""
    for job in jobs:
        found = trained(info, **{key: value for key, value in job.items() if key != "name"})
        if info.rank == 0:
            torch.save(found, Path(folder) / f"{job['name']}.pt")


def trained(
    info: RankInfo, role: str, source: str, sharding: dict[str, Any], count: int = 7, **settings: Any
) -> dict[str, Any]:
    """What a role says of `count` examples (`said`), and what comes of three steps on them: `metrics` of each,
    `gradients` of the first one, `weights` after the last."""
    make, draw = ROLES[role]
    how = ShardingConfig(ranks=info.world_size, **sharding)
    lora = settings.pop("lora", None)
    worker = make(
        info,
        model=source,
        optimizer=OptimizerConfig(lr=1e-3, grad_clip=0.1),
        sharding=how,
        total_steps=3,
        seed=3,
        lora=lora and LoraConfig(**lora),
        timeouts=TimeoutsConfig(collective=SECONDS),
        **{"dtype": "fp32", **settings},
    )
    gradients: list[dict[str, torch.Tensor]] = []
    engine, optimise = worker.engine, worker.engine._optimise

    def looked_at() -> Any:
        named = engine._model.named_parameters()
        gradients.append({name: _gradient(p) for name, p in named if p.requires_grad})
        return optimise()

    engine._optimise = looked_at
    items = draw(random.Random(4), count)
    plan = plan_items(items, info.world_size, how, "packed")
    mine = plan.split(items)[info.rank]
    every: list[Any] = [None] * info.world_size
    dist.all_gather_object(every, _said(role, worker, mine))
    arguments = (0.2, None) if role == "policy" else ()
    metrics = [worker.train_step(StepShard(mine, 9.0), *arguments) for _ in range(3)]
    specs = {spec.name: spec for spec in engine.weights.specs()}
    weights = engine._full_parameters(list(specs))
    return {
        "said": plan.restore(every) if every[0] is not None else None,
        "metrics": metrics,
        "gradients": gradients[0],
        "weights": {name: from_numpy(array, specs[name].dtype).float() for name, array in weights.items()},
    }


def _said(role: str, worker: Any, parts: Sequence[Sequence[Any]]) -> list[list[float]] | None:
    """Numbers of each example that a scoring pass gives, where the role has one."""
    if role == "preference":
        return [list(pair) for pair in worker.pair_scores(StepShard(parts))]
    if role == "dpo":
        return [list(pair) for pair in worker.pair_logprobs(StepShard(parts))]
    if role not in ("policy", "value"):
        return None
    shard = StepShard(tuple(tuple(_sample(item) for item in part) for part in parts))
    kept = worker.logprobs(shard, TEMPERATURE) if role == "policy" else worker.values(shard)
    return [row.tolist() for row in kept.rows]


def _sample(item: Trajectory) -> Generation:
    return Generation(item.prompt_ids, item.response_ids, item.sampler_logprobs, "stop", 0)


def _gradient(parameter: Any) -> torch.Tensor:
    """What the optimiser will see, whole. Collective under ZeRO."""
    from deepspeed.utils import safe_get_full_grad

    found = parameter.grad if parameter.grad is not None else safe_get_full_grad(parameter)
    assert found is not None
    return found.detach().float().clone()


def _sequences(rng: random.Random, count: int) -> list[TokenSequence]:
    """Among them sequences of one token and of none that is learned."""
    made = examples.sequences(rng, count - 2)
    return [*made, TokenSequence((9,), (1.0,)), TokenSequence((5, 6, 7), (0.0, 0.0, 0.0))]


def _labelled(rng: random.Random, count: int) -> list[LabelledPair]:
    pairs = examples.pairs(rng, count)
    return [LabelledPair(p.ids_a, p.ids_b, p.p_a, answer_start=rng.randrange(len(p.ids_a))) for p in pairs]
