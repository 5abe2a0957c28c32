"""How long the phases of an iteration take: work over rates, and where the rates come from.

Work is counted in floating-point operations: 2 a token and element of a matrix in a forward pass, 2 (h V) for a token's
logits, 2 L q a token and layer for causal attention over a sequence of L tokens (q: all query heads together); a
backward pass is twice that, and with gradient checkpointing the layers' forward pass comes once more. A rate is either
measured in a finished run on the same kind of machine, or assumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cai_dist.config.loading.load import load_run
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO
from cai_dist.errors import ConfigError, DataError
from cai_dist.plan.passes import Tokens
from cai_dist.plan.shapes import Shape
from cai_dist.plan.workers import PHASES, WorkerEstimate
from cai_dist.plan.zero import ITEM
from cai_dist.tracking.run_folder import RunFolder

KEYS = ("rollout", "score", "update", "transfer")


@dataclass(frozen=True)
class Rates:
    """FLOP/s of generation, scoring and updates, bytes/s of weight transfer. `per`: of all machines together, as they
    were measured, or of one GPU. `read`: bytes/s that decoding reads from a GPU's memory, in place of `rollout`;
    `host`: bytes/s between a GPU and its host, of what leaves a shared GPU and comes back."""

    rollout: float
    score: float
    update: float
    transfer: float
    per: Literal["all", "gpu"]
    source: str
    read: float | None = None
    host: float = 25e9


H100 = Rates(
    rollout=0.0,
    score=0.40 * 989e12,
    update=0.35 * 989e12,
    transfer=5e9,
    per="gpu",
    source="ASSUMED: H100, bf16: 35% of 989 TFLOP/s in updates, 40% in scoring, decoding reads at half of 3.35 TB/s, "
    "weights travel at 5 GB/s, states of shared GPUs to the host and back at 25 GB/s",
    read=0.5 * 3.35e12,
)
"""Datasheet figures times shares that are assumed, not measured here."""


@dataclass(frozen=True)
class Work:
    """The work of one iteration of PPO, all workers together: FLOPs of each phase, bytes of the transfer."""

    rollout: float
    score: float
    update: float
    transfer: float


@dataclass(frozen=True)
class Seconds:
    """Seconds of one iteration; `score` is part of `rollout` where the rate was measured with both in one. `moves`: of
    what leaves shared GPUs for the host between phases and comes back; where rates were measured, it is in them."""

    rollout: float
    score: float
    update: float
    transfer: float
    source: str
    moves: float = 0.0

    def total(self, schedule: str) -> float:
        """One phase after the other; with `one_step_off` sampling goes on beside scoring and update. `partial` counts
        as `sync`: what it saves is in how much lengths differ, which is not known."""
        beside = self.score + self.update
        if schedule == "one_step_off":
            return max(self.rollout, beside) + self.transfer + self.moves
        return self.rollout + beside + self.transfer + self.moves


def forward(shape: Shape, tokens: int, sequence: int, rows: int) -> float:
    """FLOPs of a forward pass over `tokens` tokens in sequences of `sequence`, logits at `rows` of them."""
    queries = shape.heads * shape.head_dim
    attention = 2.0 * shape.layers * queries * sequence
    return tokens * (2.0 * shape.matrices + attention) + 2.0 * rows * shape.hidden * shape.vocab


def work_of(config: RunConfig, shapes: Mapping[str, Shape], tokens: Tokens) -> Work:
    """The work of one iteration in which all responses have `tokens.wanted` tokens."""
    ppo = config.ppo
    samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
    every, rows, length = samples * tokens.sequence, samples * tokens.wanted, tokens.sequence
    one = {
        role: forward(shapes[role], every, length, rows if role in ("policy", "reference", "rollout") else 0)
        for role in shapes
    }
    scoring = [role for role in ppo.roles if role in ("policy", "value", "reference", "reward")]
    if ppo.old_logprobs == "sampler":
        scoring.remove("policy")
    score = sum(one[role] for role in scoring) + (one["policy"] if ppo.lora is not None else 0.0)
    update = sum(_updates(config, shapes, tokens, role) for role in ppo.trained_roles)
    transfer = float(ITEM[config.models.dtype] * shapes["policy"].parameters)
    return Work(one["rollout"], score, update, transfer)


def seconds(
    config: RunConfig,
    shapes: Mapping[str, Shape],
    tokens: Tokens,
    rates: Rates,
    workers: Sequence[WorkerEstimate] = (),
) -> Seconds:
    """Expected, one iteration; `workers` of PPO: what they move between shared GPUs and hosts."""
    work, ppo = work_of(config, shapes, tokens), config.ppo
    transfer = work.transfer / rates.transfer
    if rates.per == "all":
        return Seconds(
            (work.rollout + work.score) / rates.rollout, 0.0, work.update / rates.update, transfer, rates.source
        )
    scoring = {role: _scoring(config, shapes, tokens, role) for role in ppo.roles if role != "rollout"}
    score = _slowest(ppo, scoring, rates.score)
    update = _slowest(ppo, {role: _updates(config, shapes, tokens, role) for role in ppo.trained_roles}, rates.update)
    samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
    rollout = decoding_seconds(config, shapes["rollout"], tokens, -(-samples // ppo.workers_of("rollout")), rates)
    moves = _moved(ppo, workers) / rates.host
    return Seconds(rollout, score, update, transfer, rates.source, moves)


def _slowest(ppo: PpoConfig, work: Mapping[str, float], rate: float) -> float:
    """Seconds of the last of roles that work side by side. Those of a shared group have its GPUs one after the other;
    a fraction of a GPU has that fraction of its rate."""
    groups = ppo.shared_groups
    alone = [role for role in work if not any(role in group for group in groups)]
    times = [sum(work.get(role, 0.0) / ppo.workers_of(role) for role in group) for group in groups]
    for role in alone:
        gpus = getattr(ppo.placement, role).gpus
        times.append(work[role] / (ppo.workers_of(role) * min(1.0, gpus or 1.0)))
    return max(times) / rate


def _moved(ppo: PpoConfig, workers: Sequence[WorkerEstimate]) -> float:
    """Bytes that leave the busiest shared GPU and come back in one iteration, of all its roles."""
    by_role: dict[str, int] = {}
    for worker in workers:
        away = [worker.host[phase].get("made room", 0) for phase in PHASES[1:] if phase in worker.host]
        by_role[worker.role] = sum(abs(there - before) for before, there in zip(away, away[1:] + away[:1], strict=True))
    return float(max((sum(by_role.get(role, 0) for role in group) for group in ppo.shared_groups), default=0))


def _samples(config: RunConfig) -> int:
    return config.ppo.prompts_per_iteration * config.ppo.samples_per_prompt


def _scoring(config: RunConfig, shapes: Mapping[str, Shape], tokens: Tokens, role: str) -> float:
    samples = _samples(config)
    rows = samples * tokens.wanted if role in ("policy", "reference") else 0
    twice = 2 if role == "policy" and config.ppo.lora is not None else 1
    return twice * forward(shapes[role], samples * tokens.sequence, tokens.sequence, rows)


def _updates(config: RunConfig, shapes: Mapping[str, Shape], tokens: Tokens, role: str) -> float:
    ppo, every = config.ppo, _samples(config) * tokens.sequence
    rows = _samples(config) * tokens.wanted if role == "policy" else 0
    work = 3.0 * forward(shapes[role], every, tokens.sequence, rows)
    if getattr(ppo, role).checkpoints(bool(getattr(ppo.placement, role).gpus)):
        work += forward(shapes[role], every, tokens.sequence, 0)
    return ppo.epochs * work


def decoding_seconds(config: RunConfig, shape: Shape, tokens: Tokens, rows: int, rates: Rates) -> float:
    """Seconds for `rows` responses of one engine: prompts at the rate of scoring; then every token reads all weights
    and the keys and values so far. The processes of an engine share both; what they tell each other is not counted."""
    item, prompt = ITEM[config.models.dtype], tokens.sequence - tokens.wanted
    at_once = min(rows, config.engine.max_rows)
    steps = tokens.wanted * -(-rows // at_once)
    cache = item * shape.kv_elements * at_once * (prompt + tokens.wanted / 2)
    read = steps * (item * shape.parameters + cache) / (rates.read or 1.0)
    return (read + forward(shape, rows * prompt, prompt, rows) / rates.score) / config.engine.processes


# ---- where rates come from


def read_rates(path: Path, shapes_of: Callable[[RunConfig], Mapping[str, Shape]], prompt: int | None) -> Rates:
    """Rates from a finished run's folder (config.yaml, metrics.jsonl), or from a JSON file with `score`, `update`
    (FLOP/s of one GPU), `read` (bytes/s that decoding reads) and `transfer` (bytes/s), perhaps `host` (bytes/s between
    a GPU and its host).

    `shapes_of`: RunConfig -> shapes by role. `prompt`: tokens of a prompt in that run; default: what its context
    leaves. Raises DataError.
    """
    return _measured(path, shapes_of, prompt) if path.is_dir() else _written(path)


def _written(path: Path) -> Rates:
    try:
        found = json.loads(path.read_text("utf-8"))
        numbers = {key: float(found[key]) for key in ("score", "update", "read", "transfer")}
        numbers["host"] = float(found.get("host", H100.host))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"--rates {path}: must be a run folder, or a JSON object with score, update (FLOP/s of one GPU), read and "
            f"transfer (bytes/s): {type(error).__name__}: {error}"
        ) from None
    if min(numbers.values()) <= 0:
        raise DataError(f"--rates {path}: every rate must be above 0")
    return Rates(
        0.0,
        numbers["score"],
        numbers["update"],
        numbers["transfer"],
        "gpu",
        f"from {path}",
        read=numbers["read"],
        host=numbers["host"],
    )


def _measured(folder: Path, shapes_of: Callable[[RunConfig], Mapping[str, Shape]], prompt: int | None) -> Rates:
    """Medians over the iterations, the first left out where there are more: it warms up."""
    try:
        config = load_run(RunFolder(folder).config)
        lines = RunFolder(folder).metrics.read_text("utf-8").splitlines()
    except (OSError, ConfigError) as error:
        raise DataError(f"--rates {folder}: not the folder of a run: {error}") from None
    rows = [row for row in map(_row, lines) if row.get("stage") == PPO and "update_seconds" in row]
    if not rows:
        raise DataError(
            f"--rates {folder}: its metrics.jsonl has no iteration of PPO; name a run that has finished one"
        )
    shapes = shapes_of(config)
    found: dict[str, list[float]] = {key: [] for key in KEYS}
    for row in rows[1:] or rows:
        new = max(1, round(row["response_length"]))
        room = config.models.context - config.ppo.sampling.max_new_tokens
        work = work_of(config, shapes, Tokens((room if prompt is None else prompt) + new, new))
        found["rollout"].append((work.rollout + work.score) / row["rollout_seconds"])
        found["update"].append(work.update / row["update_seconds"])
        found["transfer"].append(row["sync_bytes"] / row["sync_seconds"])
    rollout, update, transfer = (median(found[key]) for key in ("rollout", "update", "transfer"))
    source = f"measured in {folder} ({len(rows)} iterations), as fast as its machines together"
    return Rates(rollout, rollout, update, transfer, "all", source)


def _row(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
