"""Durable generation: prompts in shards, each shard one request, one Parquet file; what is there is not made again.

A shard's samples depend on (run seed, label, shard number) alone, so that neither the number of workers nor an
interruption nor the death of a worker changes a byte. A file holds the hash of its request: one that was made from
another is put aside and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cai_dist.config.seeds import stable_seed
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.data.tables import Shards
from cai_dist.stages.context import Records, RunContext, model_settings
from cai_dist.stages.execution.reuse import model_hash
from cai_dist.tracking.atomic import sha256_json
from cai_dist.types import GenerateRequest, Generation, LabelRequest, SamplingParams

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

TEXT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish", pa.string()),
        ("thoughts", pa.string()),
    ]
)
EngineRequest = GenerateRequest | LabelRequest
LABEL_SCHEMA = pa.schema([("key", pa.string()), ("logprobs", pa.list_(pa.float64()))])


@dataclass(frozen=True)
class Ask:
    """One prompt to answer; `key` names it in the shard file."""

    key: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What came back. `finish` is stop, length or too_long (the prompt left no room: `text` is empty). `thoughts` is
    what a reasoning model wrote before its answer; `text` is without it, and empty where no answer was reached."""

    key: str
    text: str
    finish: str
    thoughts: str = ""


def generate(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    label: str,
    asks: Sequence[Ask],
    *,
    model: str,
    chat: ChatFormat,
    sampling: SamplingConfig,
    shard_size: int,
    stop_ids: Sequence[int] | None = None,
) -> list[Answer]:
    """Answer every ask, in order, up to a token of `stop_ids` (default: what ends an answer in `chat`). Finished shards
    under `folder/label` are read, not made again; those made from other requests are put aside.

    A prompt that leaves no room for the answer in `models.context` gets an empty answer with finish `too_long`; the
    caller counts it. Raises Interrupted between shards.
    """
    ends = tuple(chat.stop_ids if stop_ids is None else stop_ids)
    params = SamplingParams(sampling.max_new_tokens, sampling.temperature, sampling.top_p, ends)
    room = ctx.config.models.context - sampling.max_new_tokens

    def request(i: int, piece: Sequence[Ask]) -> GenerateRequest:
        return GenerateRequest(_prompts(piece, room), params, stable_seed(ctx.config.seed, label, i), model)

    def rows(piece: Sequence[Ask], results: Sequence[Generation]) -> Records:
        found = iter(results)
        return [_text_row(a, next(found) if len(a.prompt_ids) <= room else None, chat) for a in piece]

    made = _sharded(ctx, group, folder, label, asks, "generate", request, rows, TEXT_SCHEMA, shard_size)
    answers = [Answer(r["key"], r["text"], r["finish"], r.get("thoughts") or "") for r in made]
    if lost := sum(bool(a.thoughts) and not a.text for a in answers):
        ctx.console.warn(
            f"{folder.name}: {label}: {lost} of {len(answers)} answers were not reached: the model was still thinking "
            f"after {sampling.max_new_tokens} tokens; raise max_new_tokens, or take a model that answers at once"
        )
    return answers


def score_labels(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    label: str,
    asks: Sequence[Ask],
    *,
    model: str,
    labels: tuple[tuple[int, ...], ...],
    shard_size: int,
) -> list[tuple[float, ...] | None]:
    """For each ask the log-probability (nats) of each label as its continuation; None where the ask is too long."""
    room = ctx.config.models.context - max(len(x) for x in labels)

    def request(i: int, piece: Sequence[Ask]) -> LabelRequest:
        return LabelRequest(_prompts(piece, room), labels, model)

    def rows(piece: Sequence[Ask], results: Sequence[tuple[float, ...]]) -> Records:
        found = iter(results)
        return [{"key": a.key, "logprobs": list(next(found)) if len(a.prompt_ids) <= room else None} for a in piece]

    made = _sharded(ctx, group, folder, label, asks, "score_labels", request, rows, LABEL_SCHEMA, shard_size)
    return [None if r["logprobs"] is None else tuple(r["logprobs"]) for r in made]


def _sharded(
    ctx: RunContext,
    group: WorkQueue,
    folder: Path,
    label: str,
    asks: Sequence[Ask],
    method: str,
    request: Callable[[int, Sequence[Ask]], EngineRequest],
    rows: Callable[[Sequence[Ask], Any], Records],
    schema: pa.Schema,
    shard_size: int,
) -> Records:
    """Send the missing shards to whichever worker is free, write each as it comes, return all rows in order."""
    pieces = [asks[i : i + shard_size] for i in range(0, len(asks), shard_size)]
    requests = [request(i, piece) for i, piece in enumerate(pieces)]
    keys = [_key(ctx, method, made, piece) for made, piece in zip(requests, pieces, strict=True)]
    shards = open_shards(ctx, folder / label, keys)
    missing = {f"shard {i} ({keys[i][:12]})": i for i in shards.missing()}
    with ctx.console.task(label, total=len(asks), unit="prompts") as task:
        task.advance(len(asks) - sum(len(pieces[i]) for i in missing.values()))
        todo = {name: requests[i] for name, i in missing.items()}
        for name, results in group.map(f"{folder.name}: {label}", method, todo):
            i = missing[name]
            shards.write(i, rows(pieces[i], results), schema)
            task.advance(len(pieces[i]))
            ctx.check_stop()
    return shards.rows()


def open_shards(ctx: RunContext, folder: Path, keys: Sequence[str]) -> Shards:
    """The pieces with these keys in `folder`; what is there beside them is put aside, and that is said."""
    shards = Shards(folder, keys)
    if aside := shards.put_aside():
        ctx.console.say(f"{folder.name}: shards there were made from other requests; they are kept in {aside.name}")
    return shards


def _key(ctx: RunContext, method: str, request: EngineRequest, piece: Sequence[Ask]) -> str:
    """Hash of all that the rows of a shard are made from: the request, the model's content in place of its path."""
    if isinstance(request, GenerateRequest):
        asked: dict[str, Any] = {"sampling": asdict(request.sampling), "seed": request.seed}
    else:
        asked = {"labels": request.labels}
    provenance = {
        **asked,
        "method": method,
        "prompts": request.prompts,
        "model": model_hash(request.model),
        "keys": [a.key for a in piece],
        **model_settings(ctx.config),
    }
    return sha256_json(provenance)


def _prompts(piece: Sequence[Ask], room: int) -> tuple[tuple[int, ...], ...]:
    return tuple(a.prompt_ids for a in piece if len(a.prompt_ids) <= room)


def _text_row(ask: Ask, generation: Generation | None, chat: ChatFormat) -> dict[str, Any]:
    if generation is None:
        return {"key": ask.key, "text": "", "response_ids": [], "finish": "too_long", "thoughts": ""}
    ids = generation.response_ids.tolist()
    thoughts, text = chat.thoughts_and_answer(ids)
    return {
        "key": ask.key,
        "text": text,
        "response_ids": ids,
        "finish": generation.finish,
        "thoughts": thoughts,
    }
