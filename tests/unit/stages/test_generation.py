"""Durable generation: what is there is not made again, and what does not fit is not sent."""

from __future__ import annotations

import contextlib

import pytest

from cai_dist.config.run import ModelsConfig
from cai_dist.config.training import SamplingConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.stages.execution.generation import Ask, generate, score_labels
from cai_dist.types import GenerateRequest, Generation, LabelRequest
from cai_dist.world.tokenizer import build_tokenizer

from .conftest import FakeGroup

SAMPLING = SamplingConfig(max_new_tokens=8)


def echo(method: str, request: GenerateRequest) -> list[Generation]:
    """Answers with the prompt's first token and a number drawn from the request's seed."""
    return [Generation(p, (p[0], 5 + request.seed % 7), (0.0, 0.0), "stop", 0) for p in request.prompts]


def ask(run, group, folder, asks, shard_size=4, model="m", sampling=SAMPLING, stop_ids=None):
    chat = ChatFormat(build_tokenizer(), "template", run.constitution.templates.labels)
    return generate(
        run, group, folder, "x", asks, model=model, chat=chat, sampling=sampling, shard_size=shard_size,
        stop_ids=stop_ids,
    )  # fmt: skip


def files(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_finished_shards_are_not_made_again(make_run, tmp_path) -> None:
    run = make_run()
    asks = [Ask(f"k{i}", (10 + i,)) for i in range(10)]
    first = FakeGroup(echo)
    whole = ask(run, first, tmp_path / "a", asks)
    assert first.calls == 3  # 4 + 4 + 2
    (tmp_path / "a" / "x" / "00001.parquet").unlink()
    again = FakeGroup(echo)
    assert ask(run, again, tmp_path / "a", asks) == whole
    assert again.calls == 1


def test_interrupted_and_whole_runs_write_the_same_bytes(make_run, tmp_path) -> None:
    run = make_run()
    asks = [Ask(f"k{i}", (10 + i,)) for i in range(10)]
    ask(run, FakeGroup(echo), tmp_path / "whole", asks)

    class Dies(FakeGroup):
        def map(self, phase, method, items):
            yield next(super().map(phase, method, items))
            raise ConnectionError

    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            ask(run, Dies(echo), tmp_path / "parts", asks)
    ask(run, FakeGroup(echo), tmp_path / "parts", asks)
    for i in range(3):
        name = f"x/{i:05d}.parquet"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_prompt_without_room_is_not_sent_but_keeps_its_place(make_run, tmp_path) -> None:
    run = make_run(
        models=ModelsConfig(context=16),
        **{s: {"sampling": {"max_new_tokens": 8}} for s in ("revise", "feedback", "ppo", "evaluate")},
    )
    asks = [Ask("short", (10,)), Ask("long", tuple(range(10, 19))), Ask("fits", tuple(range(10, 18)))]
    answers = ask(run, FakeGroup(echo), tmp_path, asks)
    assert [(a.key, a.finish) for a in answers] == [("short", "stop"), ("long", "too_long"), ("fits", "stop")]

    def scores(method: str, request: LabelRequest) -> list[tuple[float, ...]]:
        assert all(len(p) <= 15 for p in request.prompts)
        return [(-1.0, -2.0) for _ in request.prompts]

    asks = [Ask("long", tuple(range(16))), Ask("fits", tuple(range(15)))]
    found = score_labels(
        run, FakeGroup(scores), tmp_path, "l", asks, model="m", labels=((1,), (2,)), shard_size=9
    )  # fmt: skip
    assert found == [None, (-1.0, -2.0)]


ASKS = [Ask(f"k{i}", (10 + i,)) for i in range(10)]


@pytest.mark.parametrize(
    ("changed", "calls"),
    [
        ({}, 0),
        ({"asks": [*ASKS[:5], Ask("k5", (99,)), *ASKS[6:]]}, 1),
        ({"asks": [*ASKS[:9], Ask("other", ASKS[9].prompt_ids)]}, 1),
        ({"asks": ASKS[:8]}, 0),
        ({"model": "n"}, 3),
        ({"sampling": SAMPLING.model_copy(update={"temperature": 0.5})}, 3),
        ({"stop_ids": (1, 2)}, 3),
        ({"shard_size": 5}, 2),
    ],
)
def test_what_was_made_from_another_request_is_made_again_and_kept_aside(make_run, tmp_path, changed, calls) -> None:
    """And the folder ends with what a first run would have written, byte for byte."""
    run = make_run()
    arguments = {"asks": ASKS} | changed
    clean = ask(run, FakeGroup(echo), tmp_path / "clean", **arguments)
    ask(run, FakeGroup(echo), tmp_path / "a", ASKS)
    before = files(tmp_path / "a" / "x")
    group = FakeGroup(echo)
    assert ask(run, group, tmp_path / "a", **arguments) == clean
    assert group.calls == calls
    after = files(tmp_path / "a" / "x")
    assert after == files(tmp_path / "clean" / "x")
    stale = {name: data for name, data in before.items() if after.get(name) != data}
    aside = tmp_path / "a" / "x.old-1"
    assert (files(aside) if aside.exists() else {}) == stale


@pytest.mark.parametrize("sections", [{"seed": 1}, {"models": ModelsConfig(context=200)}])
def test_seed_and_model_settings_are_part_of_a_request(make_run, tmp_path, sections) -> None:
    ask(make_run(), FakeGroup(echo), tmp_path / "a", ASKS)
    group = FakeGroup(echo)
    ask(make_run(**sections), group, tmp_path / "a", ASKS)
    assert group.calls == 3


def test_the_model_counts_by_its_content_not_its_place(make_run, tmp_path) -> None:
    run = make_run()
    for name, weights in (("one", "w"), ("moved", "w"), ("trained", "v")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(weights)
    calls = []
    for name in ("one", "moved", "trained"):
        group = FakeGroup(echo)
        ask(run, group, tmp_path / "a", ASKS, model=str(tmp_path / name))
        calls.append(group.calls)
    assert calls == [3, 0, 3]


def test_labels_are_part_of_a_request(make_run, tmp_path) -> None:
    calls = []
    for labels in (((1,), (2,)), ((1,), (2,)), ((1,), (3,))):
        group = FakeGroup(lambda method, request: [(-1.0, -2.0) for _ in request.prompts])
        score_labels(make_run(), group, tmp_path, "l", ASKS, model="m", labels=labels, shard_size=9)
        calls.append(group.calls)
    assert calls == [2, 0, 2]
