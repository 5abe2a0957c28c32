"""The table of `docs/models.md`: what each architecture gives in every pass of this project, compared with what
transformers' `eager` attention gives for one sequence at a time. `python -m tests.model_table` measures and writes it.

Everything runs on the real parts, in one process: loading from a folder, the policy's worker on DeepSpeed's engine, the
scalar model, the Hugging Face engine, export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_dist.config.engine import EngineConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import Layout
from cai_dist.data.batches import sample_batch, trajectory_batch
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import UserError
from cai_dist.losses.policy import PolicyObjective, policy_loss
from cai_dist.models.layout import attention_window
from cai_dist.models.load import load_scalar
from cai_dist.types import GenerateRequest, Generation, LabelRequest, SamplingParams, StepShard, Trajectory
from cai_dist.workers.policy import PolicyWorker
from tests.architectures import ARCHITECTURES, VOCAB, Architecture
from tests.ids import ids_of, prompt_of, response_of
from tests.inprocess import build_worker

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TOLERANCE = 3e-5
"""Nats, scores, and gradients in proportion to the largest one; in fp32."""
SAME, REFUSED = "=", "refused"
T = 0.7
STOPS = (2, 9, 11)


@dataclass(frozen=True)
class Row:
    """What came out for one architecture: `=`, `= n` (sequences of up to n tokens) or `refused`."""

    packed: str
    padded: str
    greedy: str
    logprobs: str
    labels: str
    scalar: str
    gradients: str
    ratio: str
    export: str


class DifferenceError(AssertionError):
    """A number that is neither equal nor refused."""


def measure(architecture: Architecture, folder: Path) -> Row:
    """Try one architecture, with a folder for its files. Raises DifferenceError, or whatever broke."""
    source = str(folder / "model")
    architecture.network().save_pretrained(source)
    plain = AutoModelForCausalLM.from_pretrained(source, attn_implementation=architecture.attention).eval()
    window = attention_window(plain.config)
    items = _samples(longest=24)
    short = items if window == float("inf") else _samples(longest=int(window))
    within = SAME if window == float("inf") else f"{SAME} {window:g}"
    packed = _or_refused(lambda: _training(source, plain, short, "packed", "", None))
    padded = _or_refused(lambda: _training(source, plain, items, "padded", architecture.attention, folder / "out"))
    layouts = {"packed": within, "padded": SAME}
    trained = [layout for layout, out in (("packed", packed), ("padded", padded)) if out != REFUSED]
    engine = _or_refused(lambda: _loaded(source))
    served = [REFUSED] * 3 if engine == REFUSED else _serving(engine, plain)
    in_training = SAME if trained else REFUSED
    return Row(
        layouts["packed"] if "packed" in trained else REFUSED,
        layouts["padded"] if "padded" in trained else REFUSED,
        *served,
        _or_refused(lambda: _scalar(source, folder, items, architecture.attention)),
        *[in_training] * 3,
    )


def _or_refused(part: Callable[[], Any]) -> Any:
    """What a part gives, or `refused` where the project says so by name in one line."""
    try:
        return part()
    except UserError as error:
        assert "\n" not in str(error)
        return REFUSED


def _same(what: str, found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    difference = float((found - expected).abs().max()) / scale
    if not difference < TOLERANCE:  # not a number is a difference, too
        raise DifferenceError(f"{what}: off by {difference:.2g}")


# ---- training


def _samples(longest: int) -> list[Generation]:
    """Prompts with responses, `longest` tokens together at most; none holds the padding id."""
    made, draw = [], torch.Generator().manual_seed(1)
    for prompt, response in ((1, longest - 1), (longest // 2, longest // 4), (longest // 3, longest // 2), (2, 1)):
        ids = torch.randint(3, VOCAB, (prompt + response,), generator=draw).tolist()
        made.append(Generation(tuple(ids[:prompt]), tuple(ids[prompt:]), (0.0,) * response, "stop", 0))
    return made


def _plain_logprobs(plain: Any, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Log-probabilities [n] of a response, by a pass over this sequence alone."""
    ids = torch.tensor([[*prompt, *response]])
    table = torch.log_softmax(plain(input_ids=ids, use_cache=False).logits[0].float() / temperature, -1)
    return table[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)


def _training(
    source: str, plain: Any, items: Sequence[Generation], layout: Layout, attention: str, export: Path | None
) -> str:
    """Log-probabilities, the gradient of the policy's loss, the ratio of its first step, what is exported after it."""
    objective = PolicyObjective(0.2)
    worker = build_worker(
        PolicyWorker, source, layout=layout, objective=objective, temperature=T, ppo=PpoConfig(), total_steps=1
    )
    old = [list(row) for row in worker.logprobs(StepShard((tuple(items),)), T).rows]
    plain.zero_grad()
    expected = [_plain_logprobs(plain, prompt_of(s), response_of(s), T) for s in items]
    _same(f"{layout} log-probabilities", torch.tensor(sum(old, [])), torch.cat(expected).detach())
    # Ratios other than one, so that the gradient is not of the advantages alone.
    shifted = [
        _trajectory(s, [p + 0.1 * (-1) ** t for t, p in enumerate(row)]) for s, row in zip(items, old, strict=True)
    ]
    batch, tokens = trajectory_batch(shifted), float(sum(map(len, old)))
    flat = torch.zeros(batch.old_logprobs.shape).masked_scatter(batch.tokens.response_mask, torch.cat(expected))
    args = (batch.old_logprobs, batch.advantages, batch.weights, batch.tokens.response_mask, tokens, objective)
    policy_loss(flat, *args)[0].backward()
    model = worker.engine._model
    found = model(batch.tokens.ids, batch.tokens.lengths, batch.tokens.response_mask, T, False)[0]
    policy_loss(found, *args)[0].backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in model.hf.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys() and mine
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        _same(f"{layout} gradient of {name}", mine[name], gradient, largest)
    model.zero_grad()
    first = worker.train_step(
        StepShard((tuple(_trajectory(s, row) for s, row in zip(items, old, strict=True)),), tokens), 0.0, None
    )
    if (first["ratio"], first["ratio_deviation"], first["clip_fraction"]) != (1.0, 0.0, 0.0) or not first["grad_norm"]:
        raise DifferenceError(
            f"{layout}: ratio of the first step {first['ratio']}, deviation {first['ratio_deviation']}"
        )
    if export is not None:
        _exported(worker, items, attention, export)
    return SAME


def _trajectory(item: Generation, old: Sequence[float]) -> Trajectory:
    row, ones = tuple(old), (1.0,) * len(old)
    return Trajectory(
        prompt_ids=prompt_of(item), response_ids=response_of(item), old_logprobs=row, ref_logprobs=row, values=ones,
        rewards=ones, advantages=tuple(1.0 - t % 3 for t in range(len(row))), returns=ones, score=1.0, finish="stop",
        weight_version=0, sampler_logprobs=row, weights=ones,
    )  # fmt: skip


@torch.no_grad()
def _exported(worker: Any, items: Sequence[Generation], attention: str, folder: Path) -> None:
    """A plain model of the exported folder says what the trained one says, and the step has changed it."""
    worker.engine.export(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    assert "cai_dist" not in (folder / "config.json").read_text()
    found = [list(row) for row in worker.logprobs(StepShard((tuple(items),)), 1.0).rows]
    expected = torch.cat([_plain_logprobs(again, prompt_of(s), response_of(s)) for s in items])
    _same("exported model", torch.tensor(sum(found, [])), expected)


# ---- rollouts and labels


def _loaded(source: str) -> HfRolloutEngine:
    engine = HfRolloutEngine("fp32", EngineConfig(max_rows=3))
    engine.load(source)
    return engine


@torch.no_grad()
def _serving(engine: HfRolloutEngine, plain: Any) -> list[str]:
    """Greedy answers, samples and labels of prompts of many lengths, three at a time."""
    draw = torch.Generator().manual_seed(2)
    prompts = tuple(tuple(torch.randint(3, VOCAB, (n,), generator=draw).tolist()) for n in (11, 3, 1, 3, 6, 1))
    for made in engine.generate(GenerateRequest(prompts, SamplingParams(14, 0.0, 1.0, STOPS), 5)):
        ids = torch.tensor([ids_of(made)])
        best = plain(input_ids=ids, use_cache=False).logits[0, len(made.prompt_ids) - 1 : -1].argmax(-1)
        if tuple(best.tolist()) != response_of(made):
            raise DifferenceError(f"greedy answer {response_of(made)}, but {best.tolist()}")
    for made in engine.generate(GenerateRequest(prompts, SamplingParams(14, T, 1.0, STOPS), 5)):
        expected = _plain_logprobs(plain, prompt_of(made), response_of(made), T)
        _same("log-probabilities of samples", torch.tensor(made.logprobs), expected)
    labels = ((4,), (5, 6), (5, 7))
    for prompt, found in zip(prompts, engine.score_labels(LabelRequest(prompts, labels)), strict=True):
        expected = torch.stack([_plain_logprobs(plain, prompt, label).sum() for label in labels])
        _same("labels", torch.tensor(found), expected)
    return [SAME] * 3


# ---- the scalar head


@torch.no_grad()
def _scalar(source: str, folder: Path, items: Sequence[Generation], attention: str) -> str:
    """Scores of the last tokens, in every layout that is not refused, by what transformers reads from a saved model."""
    saved = folder / "scalar"
    load_scalar(source, "fp32", 3, "padded").hf.save_pretrained(saved)
    plain = AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation=attention).eval()
    window = attention_window(plain.config)
    for layout in ("packed", "padded"):
        asked = items if layout == "padded" or window == float("inf") else _samples(longest=int(window))
        model = _or_refused(lambda layout=layout: load_scalar(str(saved), "fp32", 0, layout))
        if model == REFUSED and layout == "packed":
            continue
        batch = sample_batch(asked)
        found = model(batch.ids, batch.lengths)[batch.last]
        ids = [torch.tensor([ids_of(s)]) for s in asked]
        expected = torch.cat([plain(input_ids=one, attention_mask=torch.ones_like(one)).logits[0] for one in ids])
        _same(f"{layout} scores", found, expected)
    return SAME


# ---- the page

_HEAD = ("packed", "padded", "greedy", "log-probs", "labels", "scalar head", "gradients", "first ratio", "export")


def line(architecture: Architecture, row: Row) -> str:
    """A row of the table in Markdown."""
    cells = (getattr(row, field.name) for field in fields(row))
    return f"| {architecture.name} | `{architecture.config().model_type}` | " + " | ".join(cells) + " |"


def page(rows: Sequence[str], text: str) -> str:
    """The page with the lines of its table exchanged."""
    head = f"| architecture | `model_type` | {' | '.join(_HEAD)} |"
    before, _, rest = text.partition(head)
    after = rest.partition("\n\n")[2]
    return "\n".join((before + head, "|---" * (2 + len(_HEAD)) + "|", *rows)) + "\n\n" + after


def main() -> None:
    """Measure every architecture and write the page."""
    rows = []
    for architecture in ARCHITECTURES:
        with TemporaryDirectory() as folder:
            rows.append(line(architecture, measure(architecture, Path(folder))))
        sys.stdout.write(rows[-1] + "\n")
    PAGE.write_text(page(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
