"""Stage 1: the helpful-only model answers, criticises its answer under a principle and rewrites it, R times
(2212.08073, section 3.1). Every answer, principle, critique and revision is kept.

Departures from the paper: 1. text that cannot be used (empty, only another party's part, a loop, a copy of a worked
example) is drawn again `revise.retries` times, then kept out by `revise.unusable`; it is counted and never trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import REVISE
from cai_dist.constitution import (
    Constitution,
    CritiquePrinciple,
    clean_answer,
    critique_turns,
    draw,
    few_shot_turns,
    revision_turns,
)
from cai_dist.data.chat import ChatFormat
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Answer, Ask, generate
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.tables.prompts import prompt_files, training_prompts
from cai_dist.stages.tables.records import Revision, write_revisions
from cai_dist.stages.tables.transcripts import write_revision_transcripts
from cai_dist.types import Prompt, Speaker, Turn

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

NAME: Final = REVISE


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "revise": config.revise.model_dump(mode="json", exclude={"workers"}),
        "helpful_per_prompt": config.sft.helpful_per_prompt,
        **model_settings(config),
    }


def inputs(ctx: RunContext) -> list[Path]:
    """Prompts and the helpful-only model."""
    return [*prompt_files(ctx), ctx.paths.models]


def execute(ctx: RunContext) -> list[Path]:
    """Write `revise/revisions.parquet`, `revise/helpful.parquet` and `revise/transcripts.md`."""
    folder = ctx.folder(NAME)
    for series in (NAME, f"{NAME}_helpful"):
        ctx.tracker.rewind(series, -1)
    model = model_path(ctx, "assistant")
    with rollout_group(ctx, NAME, ctx.config.revise.workers) as group:
        stage = stage_reviser(ctx, group, folder, model, chat_format(ctx, model))
        revisions = stage.revise(training_prompts(ctx, "red_team"))
        helpful = stage.helpful(training_prompts(ctx, "helpful"))
    targets = [ctx.paths.revisions, ctx.paths.helpful_answers, ctx.paths.transcripts(NAME)]
    write_revisions(targets[0], revisions, ctx.constitution_note)
    write_revisions(targets[1], helpful, ctx.constitution_note)
    write_revision_transcripts(targets[2], revisions)
    return targets


def stage_reviser(ctx: RunContext, group: WorkQueue, folder: Path, model: str, chat: ChatFormat) -> Reviser:
    """The rounds as this stage runs them: answers of workers that stay in `folder`, one line of metrics a round."""
    config = ctx.config.revise

    def ask(label: str, asks: Sequence[Ask]) -> list[Answer]:
        return generate(
            ctx, group, folder, label, asks, model=model, chat=chat, sampling=config.sampling,
            shard_size=config.shard_size,
        )  # fmt: skip

    return Reviser(ctx.config, ctx.constitution, chat, ask, ctx.log)


@dataclass(frozen=True)
class _Drawn:
    """A text that a model wrote, or why it cannot be used."""

    text: str
    failure: str
    thoughts: str = ""


class Reviser:
    """Critique and revision over all prompts at once: answer -> (critique -> revision) x `revise.rounds`.

    `ask(label, asks)` answers prompts, one answer each, in order; equal labels and asks get equal answers.
    `log(series, round, **numbers)` takes one line of metrics for each round. What is drawn follows from the run's seed,
    the prompt's id and the round.
    """

    def __init__(
        self,
        config: RunConfig,
        constitution: Constitution,
        chat: ChatFormat,
        ask: Callable[[str, Sequence[Ask]], Sequence[Answer]],
        log: Callable[..., None],
    ) -> None:
        self.config, self.seed, self.helpful_per_prompt = config.revise, config.seed, config.sft.helpful_per_prompt
        self.constitution, self.chat, self.ask, self.log = constitution, chat, ask, log
        self.labels = constitution.templates.labels
        self.examples = {t.text for dialogue in constitution.few_shot_critiques for t in dialogue}
        """Texts that a weak model copies from the worked examples; a copy is no answer."""
        self.retried = 0
        """Texts drawn again since the last line of metrics."""

    def revise(self, prompts: Sequence[Prompt]) -> list[Revision]:
        """All rounds of all prompts, ordered by prompt, then round. A prompt that is left out has no further rounds."""
        first = self._draw("answer", [Ask(p.id, self.chat.prompt_ids(p.turns)) for p in prompts])
        rounds = [[Revision(p, 0, "", "", x.text, x.failure, x.thoughts) for p, x in zip(prompts, first, strict=True)]]
        self._count(NAME, 0, rounds[0])
        for number in range(1, self.config.rounds + 1):
            before = [r for r in rounds[-1] if self._goes_on(r)]
            if not before:
                break
            rounds.append(self._round(number, before))
            self._count(NAME, number, rounds[-1])
        of_prompt: dict[str, list[Revision]] = {p.id: [] for p in prompts}
        for r in (r for one_round in rounds for r in one_round):
            of_prompt[r.prompt.id].append(r)
        return [r for revisions in of_prompt.values() for r in revisions]

    def helpful(self, prompts: Sequence[Prompt]) -> list[Revision]:
        """Answers of the helpful-only model to helpful prompts, to be mixed into SL-CAI's training."""
        per_prompt = self.helpful_per_prompt
        repeated = [p for p in prompts for _ in range(per_prompt)]
        if not repeated:
            return []
        asks = [Ask(f"{p.id}/{i % per_prompt}", self.chat.prompt_ids(p.turns)) for i, p in enumerate(repeated)]
        drawn = self._draw("helpful", asks)
        answers = [Revision(p, 0, "", "", x.text, x.failure, x.thoughts) for p, x in zip(repeated, drawn, strict=True)]
        self._count(f"{NAME}_helpful", 0, answers)
        return answers

    def _goes_on(self, r: Revision) -> bool:
        """Whether the prompt has a next round: there is an answer to revise, and the rule does not leave it out."""
        return not r.failure or (self.config.unusable == "keep" and r.response != "")

    def _round(self, number: int, before: Sequence[Revision]) -> list[Revision]:
        if self.config.principles == 0:
            return [Revision(r.prompt, number, "", "", r.response, r.failure) for r in before]
        drawn = [self._principle(r.prompt.id, number) for r in before]
        critiques: list[_Drawn | None] = [None] * len(before)
        if self.config.critique:
            asks = [
                self._request(r, number, critique_turns(r.prompt.turns, r.response, p), "critique")
                for r, p in zip(before, drawn, strict=True)
            ]
            critiques = list(self._draw(f"critique-{number}", asks))
        criticised = [(r, p, c) for r, p, c in zip(before, drawn, critiques, strict=True) if c is None or not c.failure]
        asks = [
            self._request(
                r, number, revision_turns(r.prompt.turns, r.response, p, None if c is None else c.text), "revision"
            )
            for r, p, c in criticised
        ]
        written = dict(zip([a.key for a in asks], self._draw(f"revision-{number}", asks), strict=True))
        return [
            self._settle(r, number, p, c, written.get(r.prompt.id))
            for r, p, c in zip(before, drawn, critiques, strict=True)
        ]

    def _request(self, r: Revision, number: int, turns: tuple[Turn, ...], role: Speaker) -> Ask:
        """The turns after worked examples (other ones each time: a weak model copies what it always sees)."""
        shots = few_shot_turns(
            self.constitution, self.config.few_shot, self.seed, r.prompt.id, number, critique=self.config.critique
        )
        return Ask(r.prompt.id, self.chat.prompt_ids((*shots, *turns), role))

    def _settle(
        self, r: Revision, number: int, principle: CritiquePrinciple, critique: _Drawn | None, written: _Drawn | None
    ) -> Revision:
        """The revision, or the answer before it with the reason. `critique`: None where none was asked for; `written`:
        None where the critique could not be used."""
        said = critique.text if critique else ""
        if written is None:
            failure = "too_long" if critique and critique.failure == "too_long" else "no_critique"
            return Revision(r.prompt, number, principle.id, "", r.response, failure)
        text = r.response if written.failure else written.text
        return Revision(r.prompt, number, principle.id, said, text, written.failure, written.thoughts)

    def _principle(self, prompt_id: str, number: int) -> CritiquePrinciple:
        principles = self.constitution.critique_principles[: self.config.principles]
        return principles[draw(self.seed, "revise", prompt_id, number, n=len(principles))]

    def _draw(self, label: str, asks: Sequence[Ask]) -> list[_Drawn]:
        """A text for each ask; those that cannot be used are drawn again, up to `retries` times."""
        found = [self._read(answer) for answer in self.ask(label, asks)]
        for again in range(1, self.config.retries + 1):
            # Without room there will be none the next time, either.
            failed = [i for i, x in enumerate(found) if x.failure not in ("", "too_long")]
            if not failed:
                break
            self.retried += len(failed)
            for i, answer in zip(failed, self.ask(f"{label}-again-{again}", [asks[i] for i in failed]), strict=True):
                found[i] = self._read(answer)
        return found

    def _read(self, answer: Answer) -> _Drawn:
        if answer.finish == "too_long":
            return _Drawn("", "too_long")
        parsed = clean_answer(answer.text, self.labels, self.examples)
        return _Drawn(parsed.text or "", str(parsed.failure or ""), answer.thoughts)

    def _count(self, series: str, number: int, revisions: Sequence[Revision]) -> None:
        """One line of metrics: how many answers, how many cannot be used and why, and what became of them."""
        why = Counter(r.failure for r in revisions if r.failure)
        numbers = {f"failed_{reason}": float(n) for reason, n in sorted(why.items())}
        if series == NAME:
            numbers["left_out"] = sum(not self._goes_on(r) for r in revisions)
        self.log(series, number, answers=len(revisions), parse_failures=why.total(), retried=self.retried, **numbers)
        self.retried = 0
