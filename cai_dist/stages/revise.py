"""Stage 1: the helpful-only model answers, criticises its answer under a principle and rewrites it, R times
(2212.08073, section 3.1). Every answer, principle, critique and revision is kept.

Departures from the paper: 1. text that does not parse (empty, or only another turn's marker) is counted and never
trained on; the answer of the round before stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.config.run import RunConfig
from cai_dist.constitution import (
    CritiquePrinciple,
    clean_answer,
    critique_turns,
    draw,
    few_shot_turns,
    revision_turns,
)
from cai_dist.data.chat import ChatFormat
from cai_dist.stages import prepare
from cai_dist.stages.chats import chat_format
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.generation import Answer, Ask, generate
from cai_dist.stages.records import Revision, read_prompts, write_revisions
from cai_dist.stages.transcripts import write_revision_transcripts
from cai_dist.types import Prompt, Role, Turn

if TYPE_CHECKING:
    from cai_dist.cluster.group import WorkerGroup

NAME = "revise"


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "revise": config.revise.model_dump(mode="json", exclude={"workers"}),
        "helpful_per_prompt": config.sft.helpful_per_prompt,
        **model_settings(config),
    }


def inputs(run: RunContext) -> list[Path]:
    """Prompts and the helpful-only model."""
    folder = run.run_dir / prepare.NAME
    return [folder / "red_team.parquet", folder / "helpful.parquet", folder / "models.json"]


def run(run: RunContext) -> list[Path]:
    """Write `revise/revisions.parquet`, `revise/helpful.parquet` and `revise/transcripts.md`."""
    folder = run.folder(NAME)
    run.tracker.rewind(NAME, -1)
    model = prepare.model_path(run, "assistant")
    with run.generators(NAME, run.config.revise.workers) as group:
        stage = _Reviser(run, group, folder, model, chat_format(run, model))
        revisions = stage.revise(_training_prompts(run, "red_team"))
        helpful = stage.helpful(_training_prompts(run, "helpful"))
    targets = [folder / "revisions.parquet", folder / "helpful.parquet", folder / "transcripts.md"]
    write_revisions(targets[0], revisions)
    write_revisions(targets[1], helpful)
    write_revision_transcripts(targets[2], revisions)
    return targets


class _Reviser:
    """The rounds over all prompts at once: answer -> (critique -> revision) x R."""

    def __init__(self, run: RunContext, group: WorkerGroup, folder: Path, model: str, chat: ChatFormat) -> None:
        self.run, self.group, self.folder, self.model, self.chat = run, group, folder, model, chat
        self.config = run.config.revise
        self.labels = run.constitution.templates.labels
        self.examples = {t.text for dialogue in run.constitution.few_shot_critiques for t in dialogue}
        """Texts that a weak model copies from the worked examples; a copy is no answer."""

    def revise(self, prompts: Sequence[Prompt]) -> list[Revision]:
        """All rounds of all prompts, ordered by prompt, then round."""
        first = self._ask("answer", [Ask(p.id, self.chat.prompt_ids(p.turns)) for p in prompts])
        rounds = [[self._settle(p, 0, None, None, a, "") for p, a in zip(prompts, first, strict=True)]]
        self._count(rounds[0])
        for number in range(1, self.config.rounds + 1):
            rounds.append(self._round(number, rounds[-1]))
            self._count(rounds[-1])
        return [r for one_prompt in zip(*rounds, strict=True) for r in one_prompt]

    def helpful(self, prompts: Sequence[Prompt]) -> list[Revision]:
        """Answers of the helpful-only model to helpful prompts, to be mixed into SL-CAI's training."""
        per_prompt = self.run.config.sft.helpful_per_prompt
        repeated = [p for p in prompts for _ in range(per_prompt)]
        if not repeated:
            return []
        asks = [Ask(f"{p.id}/{i % per_prompt}", self.chat.prompt_ids(p.turns)) for i, p in enumerate(repeated)]
        answers = self._ask("helpful", asks)
        return [self._settle(p, 0, None, None, a, "") for p, a in zip(repeated, answers, strict=True)]

    def _round(self, number: int, before: Sequence[Revision]) -> list[Revision]:
        if self.config.principles == 0:
            return [Revision(r.prompt, number, "", "", r.response, r.failure) for r in before]
        drawn = [self._principle(r.prompt.id, number) for r in before]
        critiques: list[str | None] = [None] * len(before)
        if self.config.critique:
            asks = [
                self._request(r, number, critique_turns(r.prompt.turns, r.response, p), "critique")
                for r, p in zip(before, drawn, strict=True)
            ]
            answers = self._ask(f"critique-{number}", asks)
            critiques = [clean_answer(a.text, self.labels).text or "" for a in answers]
        asks = [
            self._request(r, number, revision_turns(r.prompt.turns, r.response, p, c), "revision")
            for r, p, c in zip(before, drawn, critiques, strict=True)
        ]
        answers = self._ask(f"revision-{number}", asks)
        return [
            self._settle(r.prompt, number, p, c, a, r.response)
            for r, p, c, a in zip(before, drawn, critiques, answers, strict=True)
        ]

    def _request(self, r: Revision, number: int, turns: tuple[Turn, ...], role: Role) -> Ask:
        """The turns after worked examples (other ones each time: a weak model copies what it always sees)."""
        shots = few_shot_turns(
            self.run.constitution, self.config.few_shot, self.run.config.seed, r.prompt.id, number,
            critique=self.config.critique,
        )  # fmt: skip
        return Ask(r.prompt.id, self.chat.prompt_ids((*shots, *turns), role))

    def _settle(
        self, prompt: Prompt, number: int, principle: CritiquePrinciple | None, critique: str | None, answer: Answer,
        kept: str,
    ) -> Revision:  # fmt: skip
        """The parsed answer, or the one before it with the reason. `critique`: None unasked, empty unparsed."""
        parsed = clean_answer(answer.text, self.labels, self.examples)
        failure = str(parsed.failure or "")
        if answer.finish == "too_long":
            failure = "too_long"
        elif critique == "":
            failure = failure or "no_critique"
        name = principle.id if principle else ""
        return Revision(prompt, number, name, critique or "", kept if failure else parsed.text or "", failure)

    def _principle(self, prompt_id: str, number: int) -> CritiquePrinciple:
        principles = self.run.constitution.critique_principles[: self.config.principles]
        return principles[draw(self.run.config.seed, "revise", prompt_id, number, n=len(principles))]

    def _ask(self, label: str, asks: Sequence[Ask]) -> list[Answer]:
        return generate(
            self.run, self.group, self.folder, label, asks, model=self.model, chat=self.chat,
            sampling=self.config.sampling, shard_size=self.config.shard_size,
        )  # fmt: skip

    def _count(self, revisions: Sequence[Revision]) -> None:
        failed = sum(bool(r.failure) for r in revisions)
        self.run.log(NAME, revisions[0].round, answers=len(revisions), parse_failures=failed)


def _training_prompts(run: RunContext, kind: str) -> list[Prompt]:
    return [p for p in read_prompts(run.run_dir / prepare.NAME / f"{kind}.parquet") if p.split == "train"]
