"""Three iterations of PPO on real actors against the same in plain torch: the same policy and the same value model, on
one rank and on two under ZeRO-1, 2 and 3; and of conversations, in which an environment speaks between answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import cai_dist
from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.placement import PlacementConfig, RoleShards
from cai_dist.config.ppo import KlConfig, PpoConfig
from cai_dist.config.training import OptimizerConfig, SamplingConfig, ShardingConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.models.load import load_scalar
from cai_dist.tracking.checkpoints import CheckpointStore
from cai_dist.types import Trajectory, TrajectoryRef
from tests.chat_table import table
from tests.ids import prompt_of, response_of
from tests.integration.conftest import TIMEOUTS
from tests.integration.plain_ppo import PlainPpo, Settings
from tests.integration.warm import WarmCluster
from tests.tiny import END, VOCAB, save_llama

ITERATIONS = 3
SHARDINGS = {"one": (1, 0), "zero1": (2, 1), "zero2": (2, 2), "zero3": (2, 3), "conversations": (2, 2)}
TOLERANCE = 1e-5
STOPS = (END, 9, 15, 21, 36, 47, 58)
"""Many, so that lengths differ; what ends with another one than END is closed before it is scored."""
FEW = PlacementConfig(cpus=0.1)
# Adam hides the scale of a gradient: not so with an epsilon of its size. Some of the policy's steps are clipped.
ADAM = OptimizerConfig(lr=3e-3, weight_decay=0.01, eps=1e-3, grad_clip=8.0)
CONFIG = PpoConfig(
    iterations=ITERATIONS,
    prompts_per_iteration=8,
    mini_batch=4,
    epochs=2,
    policy=ShardingConfig(ranks=2, micro_batch=1),
    value=ShardingConfig(ranks=2, micro_batch=1),
    policy_optimizer=ADAM,
    value_optimizer=ADAM,
    kl=KlConfig(coefficient=0.1, target=0.5, horizon=30),
    gamma=0.98,
    gae_lambda=0.9,
    sampling=SamplingConfig(max_new_tokens=8, temperature=0.7),
    placement=RoleShards(policy=FEW, value=FEW, reference=FEW, reward=FEW, rollout=FEW),
)


@dataclass
class Recorded:
    """What the run drew by chance, and what it ended with."""

    samples: list[tuple[Trajectory, ...]] = field(default_factory=list)
    mini_batches: list[list[list[int]]] = field(default_factory=list)
    """Per iteration, the numbers of the samples of each mini-batch."""
    logged: list[dict[str, float]] = field(default_factory=list)
    policy: dict[str, Tensor] = field(default_factory=dict)
    value: dict[str, Tensor] = field(default_factory=dict)
    coefficient: float = 0.0

    def on_rollout(self, iteration: int, trajectories: Sequence[Trajectory]) -> None:
        self.samples.append(tuple(trajectories))
        self.mini_batches.append([])

    def watched(self, update: Callable[..., Any], fetch: Callable[..., Any]) -> Callable[..., Any]:
        """An update call that also writes down which samples it got."""

        def call(batch: list[TrajectoryRef], *args: Any, **kwargs: Any) -> Any:
            places = {(item.prompt_id, response_of(item)): n for n, item in enumerate(self.samples[-1])}
            items = fetch([ref.row for ref in batch])
            self.mini_batches[-1].append([places[item.prompt_id, response_of(item)] for item in items])
            return update(batch, *args, **kwargs)

        return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PpoModels:
    policy = save_llama(tmp_path_factory.mktemp("policy"), tied=True, seed=1)
    reference = save_llama(tmp_path_factory.mktemp("reference"), tied=True, seed=1)
    reward, value = (str(tmp_path_factory.mktemp(name)) for name in ("reward", "value"))
    load_scalar(save_llama(tmp_path_factory.mktemp("trunk"), tied=False, seed=2), "fp32", 5).hf.save_pretrained(reward)
    critic = load_scalar(policy, "fp32", seed=6).hf
    critic.score.weight.data *= 5  # as large as other weights are: what is relative to it then means the same
    critic.save_pretrained(value)
    return PpoModels(policy=policy, reference=reference, reward=reward, value=value)


def sharding(name: str, folder: Path) -> ShardingConfig:
    """Micro-batches of one sample. ZeRO-3 leaves small parameters whole unless told otherwise: here all are small."""
    ranks, zero = SHARDINGS[name]
    packaged = Path(cai_dist.__file__).parent / "ds_configs" / f"zero{zero}.json"
    config = json.loads(packaged.read_text("utf-8"))
    if zero == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / "ds.json"
    path.write_text(json.dumps(config), "utf-8")
    return ShardingConfig(ranks=ranks, zero=zero, micro_batch=1, ds_config=str(path))  # type: ignore[arg-type]


def distributed(cluster: Any, models: PpoModels, folder: Path, name: str) -> Recorded:
    """The run under test."""
    shard = sharding(name, folder)
    talks = EnvironmentConfig(use="tests.integration.lab:Person", answers=3) if name == "conversations" else None
    config = CONFIG.model_copy(update={"policy": shard, "value": shard, "environment": talks})
    rng = random.Random(0)
    prompts = [
        TokenizedPrompt(f"{kind}{i}", kind, tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))))
        for kind in ("red_team", "helpful")
        for i in range(5)
    ]
    made, run = Recorded(), PpoGroups(
        cluster, config, models, dtype="fp32", end_id=END, policy_steps=12, value_steps=12, seed=0, timeouts=TIMEOUTS,
        prompts=table(folder, [prompt.ids for prompt in prompts]) if talks else None,
    )  # fmt: skip
    with run as roles:
        roles.update_value = made.watched(roles.update_value, roles.fetch)  # type: ignore[method-assign]
        state = loop.train(
            roles, prompts, config, seed=3, stop_ids=STOPS, checkpoints=CheckpointStore(folder / "checkpoints"),
            log=lambda step, **numbers: made.logged.append(numbers), should_stop=lambda: False,
            on_rollout=made.on_rollout,
        )  # fmt: skip
        for role in ("policy", "value"):
            roles._groups[role].broadcast("export", "export", str(folder / role))
            setattr(made, role, load_file(folder / role / "model.safetensors"))
    made.coefficient = state.kl.coefficient
    return made


def plain(models: PpoModels, recorded: Recorded) -> PlainPpo:
    """The same in plain torch, from the tokens that were sampled."""
    settings = Settings(
        end_id=END, temperature=0.7, gamma=0.98, lam=0.9, clip=CONFIG.clip, value_clip=CONFIG.value_clip,
        policy_lr=ADAM.lr, value_lr=ADAM.lr, betas=ADAM.betas, eps=ADAM.eps, weight_decay=ADAM.weight_decay,
        grad_clip=ADAM.grad_clip, kl_coefficient=0.1, kl_target=0.5, kl_horizon=30,
    )  # fmt: skip
    ppo = PlainPpo(models.policy, models.reference, models.reward, models.value, settings)
    for samples, mini_batches in zip(recorded.samples, recorded.mini_batches, strict=True):
        told = [(prompt_of(item), response_of(item), places_of(item)) for item in samples]
        ppo.iteration(told, mini_batches)
    return ppo


def places_of(item: Trajectory) -> list[int]:
    """Where the model's tokens are in the response."""
    by_model = [[mine] * len(ids) for mine, ids in item.turns()]
    return [place for place, mine in enumerate(mine for part in by_model for mine in part) if mine]


@dataclass
class Both:
    """A run and its reference; both wait until a test asks, so that what goes wrong in them is the test's failure."""

    cluster: Any
    models: PpoModels
    folder: Path
    name: str

    @cached_property
    def recorded(self) -> Recorded:
        return distributed(self.cluster, self.models, self.folder, self.name)

    @cached_property
    def ppo(self) -> PlainPpo:
        return plain(self.models, self.recorded)


@pytest.fixture(scope="module", params=SHARDINGS)
def both(
    request: pytest.FixtureRequest, warm: WarmCluster, models: PpoModels, tmp_path_factory: pytest.TempPathFactory
) -> Both:
    return Both(warm, models, tmp_path_factory.mktemp("run"), request.param)


def difference(found: Tensor, expected: Tensor) -> float:
    """Distance relative to the size of the expected tensor."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.slow
@pytest.mark.parametrize("role", ["policy", "value"])
def test_parameters_equal_those_of_plain_torch(both: Both, models: PpoModels, role: str) -> None:
    recorded, ppo = both.recorded, both.ppo
    found = getattr(recorded, role)
    expected = {name: p.detach() for name, p in getattr(ppo, role).named_parameters()}
    start = load_file(Path(getattr(models, role)) / "model.safetensors")
    assert found.keys() == expected.keys() == start.keys()
    for name, tensor in found.items():
        assert difference(tensor, expected[name]) <= TOLERANCE, name
        assert difference(start[name], expected[name]) >= 300 * TOLERANCE, f"{name} hardly moved"


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_plain_torch(both: Both) -> None:
    """Clipping and Adam forgive a wrong scale; the norm before clipping does not."""
    recorded, ppo = both.recorded, both.ppo
    assert len(ppo.history) == len(recorded.logged) == ITERATIONS
    for expected, logged in zip(ppo.history, recorded.logged, strict=True):
        assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_run_has_what_it_takes(both: Both) -> None:
    """Ragged samples, finished and cut off; every kind of clipping; sampler and trainer agree."""
    recorded = both.recorded
    items = [item for samples in recorded.samples for item in samples]
    assert len({len(item.response_ids) for item in items}) > 3
    assert {item.finish for item in items} == {"stop", "length"}
    assert all(metrics["policy_clip_fraction"] > 0 for metrics in recorded.logged)
    assert all(metrics["value_clip_fraction"] > 0 for metrics in recorded.logged)
    assert max(metrics["policy_grad_norm"] for metrics in recorded.logged) > ADAM.grad_clip
    assert all(metrics["mismatch_max"] < 1e-4 for metrics in recorded.logged)
    answers = {sum(mine for mine, _ in item.turns()) for item in items}
    assert answers == ({1, 2, 3} if both.name == "conversations" else {1})


@pytest.mark.slow
def test_the_controller_of_the_kl_went_the_same_way(both: Both) -> None:
    recorded, ppo = both.recorded, both.ppo
    assert recorded.coefficient == pytest.approx(ppo.coefficient, rel=1e-5)
    assert recorded.coefficient != pytest.approx(0.1, rel=1e-2)
