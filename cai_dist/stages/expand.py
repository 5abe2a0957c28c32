"""Before stage 1: a model writes more prompts of a kind, after examples of those there are (2212.08073, section 3.2:
140,335 of the paper's 182,831 red-team prompts were made so by few-shot prompting a pretrained model; section 4.2:
prompts of both kinds for RL alone).

The model is shown a few prompts and a human's turn is opened for it. In plain form that is "\\n\\nHuman: …" for each
example and "\\n\\nHuman:"; in a chat template the examples are chats, answered by the model itself beforehand, because
neither the micro-world's text nor any chat template has one human turn after another.

What comes back is judged as hostile text, in the order of the samples: not a word, a loop, cut off at the limit, like a
held-out prompt, said before. Samples are drawn in waves; how large a wave is follows from the ones before it, so that
an interrupted stage goes on to the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import EXPAND
from cai_dist.constitution import clean_answer, draw_some
from cai_dist.data.chat import ChatFormat
from cai_dist.data.dialogues import conversation_id, safe_text
from cai_dist.data.near_duplicates import NearDuplicates, Overlaps, words_of
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.stages.execution.generation import Answer, Ask, generate
from cai_dist.stages.execution.model_paths import model_path
from cai_dist.stages.execution.worker_groups import rollout_group
from cai_dist.stages.tables.prompts import (
    KINDS,
    given_prompts,
    heldout_comparisons,
    heldout_prompts,
)
from cai_dist.stages.tables.records import Expanded, write_expanded
from cai_dist.stages.tables.transcripts import write_expansion_transcripts
from cai_dist.types import Prompt, PromptKind, Turn

if TYPE_CHECKING:
    from cai_dist.cluster.work_queue import WorkQueue

NAME: Final = EXPAND
SHORTEST = 3
"""Words of a prompt at least: fewer make no 3-gram, and ask for next to nothing."""
ANSWERED = 256
"""Examples at most where the model has to answer them first; five of 256 can be drawn in 8.8 billion ways."""
LARGEST_WAVE = 10
"""Samples in a wave at most for each prompt that is still wanted, however few could be used before."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {"expand": config.expand.model_dump(mode="json", exclude={"workers"}), **model_settings(config)}


def inputs(ctx: RunContext) -> list[Path]:
    """Prompts and the model that writes more of them."""
    paths = ctx.paths
    return [*(paths.prompts(kind) for kind in KINDS), paths.human, paths.models]


def execute(ctx: RunContext) -> list[Path]:
    """Write `expand/KIND.parquet` and, where PPO is to have prompts of its own, `expand/rl_KIND.parquet` for each kind
    of which some are wanted, and `expand/transcripts.md` with some of what was kept and what was not.

    Where they are not reached in `tries` times as many samples, what there is stays, and the user is told; those for
    PPO alone are the ones that are lacking then. Raises DataError where a kind has no prompt to show as an example.
    """
    folder = ctx.folder(NAME)
    config = ctx.config.expand
    sieves: list[Sieve] = []
    with rollout_group(ctx, NAME, config.workers) as group:
        for kind in KINDS:
            ctx.tracker.rewind(_series(kind), -1)
            wanted = _wanted(ctx, kind)
            if not wanted:
                continue
            examples = given_prompts(ctx, kind)
            if not examples:
                raise DataError(f"expand: {wanted} new {kind} prompts are wanted, but there is none to show as example")
            sieve = sieve_of(ctx, kind, [text for s in sieves for x in s.kept for text in _human_texts(x.prompt)])
            drawn = fill(ctx, _Writer(ctx, group, folder, examples, kind).samples, sieve)
            if len(sieve.kept) < wanted:
                ctx.console.warn(
                    f"expand: {len(sieve.kept)} of {wanted} new {kind} prompts after {drawn} samples "
                    f"(expand.tries={config.tries:g}); going on with these"
                )
            sieves.append(sieve)
    targets = [target for sieve in sieves for target in _write(ctx, sieve)]
    kept = [x for sieve in sieves for x in sieve.kept]
    refused: dict[str, list[str]] = {}
    for sieve in sieves:
        for reason, texts in sieve.examples_refused.items():
            refused[reason] = [*refused.get(reason, []), *texts]
    write_expansion_transcripts(ctx.paths.transcripts(NAME), kept, refused)
    return [*targets, ctx.paths.transcripts(NAME)]


def _write(ctx: RunContext, sieve: Sieve) -> list[Path]:
    """The tables of a kind: the first prompts for all stages, the others for PPO alone."""
    config, targets = ctx.config.expand, []
    shared = config.wanted(sieve.kind)
    parts = (
        (shared, sieve.kept[:shared], False),
        (config.wanted_for_rl(sieve.kind), sieve.kept[shared:], True),
    )
    for wanted, prompts, rl in parts:
        if wanted:
            targets.append(ctx.paths.expanded(sieve.kind, rl))
            write_expanded(targets[-1], prompts, ctx.constitution_note)
    return targets


def _wanted(ctx: RunContext, kind: PromptKind) -> int:
    return ctx.config.expand.wanted(kind) + ctx.config.expand.wanted_for_rl(kind)


def _series(kind: PromptKind) -> str:
    """The stage's name in metrics."""
    return NAME if kind == "red_team" else f"{NAME}_{kind}"


@dataclass(frozen=True)
class WrittenPrompt:
    """One text that a model wrote as a human's turn."""

    number: int
    answer: Answer
    shown: tuple[Prompt, ...]
    """The examples before it."""


@dataclass
class Sieve:
    """Takes samples in order and keeps those that can be used as prompts; counts why the others cannot."""

    parse: Callable[[WrittenPrompt], tuple[str, str]]
    """A sample's text, and why it is no prompt ("": it is one)."""
    leaks: Callable[[str], str]
    """In what way a text is like something held out, as a reason ("": it is not)."""
    near: NearDuplicates
    said: set[tuple[str, ...]]
    kind: PromptKind = "red_team"
    kept: list[Expanded] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    examples_refused: dict[str, list[str]] = field(default_factory=dict)
    """A few texts for each reason."""

    def take(self, sample: WrittenPrompt) -> bool:
        """Whether this sample is kept."""
        text, reason = self.parse(sample)
        reason = reason or self._repeats(text)
        if reason:
            self.refused[reason] += 1
            self.examples_refused.setdefault(reason, []).append(text)
            del self.examples_refused[reason][3:]
            return False
        self.said.add(words_of(text))
        self.near.add(text)
        turns = (Turn("human", text),)
        prompt = Prompt(conversation_id(turns, self.kind), turns, self.kind)
        self.kept.append(Expanded(prompt, sample.number, tuple(p.id for p in sample.shown)))
        return True

    def _repeats(self, text: str) -> str:
        if reason := self.leaks(text):
            return reason
        if words_of(text) in self.said:
            return "repeated"
        return "near" if self.near.has_near(text) else ""


def fill(ctx: RunContext, samples: Callable[[int, range], Sequence[WrittenPrompt]], sieve: Sieve) -> int:
    """Draw waves through the sieve until it holds what is wanted of its kind, or `tries` are used up; returns the
    samples drawn.

    `samples(wave, numbers)` draws those with these numbers.
    """
    wanted = _wanted(ctx, sieve.kind)
    wave = drawn = 0
    limit = int(ctx.config.expand.tries * wanted)
    while size := _wave_size(wanted - len(sieve.kept), len(sieve.kept), drawn, limit - drawn):
        for sample in samples(wave, range(drawn, drawn + size)):
            if len(sieve.kept) < wanted:
                sieve.take(sample)
        drawn += size
        refused = {f"not_{reason}": float(n) for reason, n in sorted(sieve.refused.items())}
        ctx.log(_series(sieve.kind), wave, samples=drawn, prompts=len(sieve.kept), **refused)
        wave += 1
    return drawn


def sieve_of(ctx: RunContext, kind: PromptKind = "red_team", written: Sequence[str] = ()) -> Sieve:
    """A sieve for prompts of a kind that knows every human turn of the run's training prompts and what is `written`
    already (to repeat none), and how all that is held out opens: prompts of both kinds and human comparisons (to be
    like none). Later turns ("why not?") tell nothing."""
    threshold = ctx.config.expand.near_duplicate
    given = [text for k in KINDS for p in given_prompts(ctx, k) for text in _human_texts(p)]
    texts = list(dict.fromkeys([*given, *written]))
    held_out = [*heldout_prompts(ctx), *(c.prompt for c in heldout_comparisons(ctx))]
    apart = Overlaps(threshold, sorted({_opening(p) for p in held_out}))
    of_world = _world_leaks(ctx)
    labels = ctx.constitution.templates.labels

    def parse(sample: WrittenPrompt) -> tuple[str, str]:
        shown = {_opening(p) for p in sample.shown}
        found = clean_answer(safe_text(sample.answer.text), labels, shown, human=True)
        text = found.text or ""
        if sample.answer.finish == "too_long":
            return "", "too_long"
        if found.failure:
            return text, str(found.failure)
        if sample.answer.finish == "length" and not found.cut:
            return text, "cut_off"
        return text, "short" if len(words_of(text)) < SHORTEST else ""

    def leaks(text: str) -> str:
        if of_world(text):
            return "held_out_combination"
        like = apart.likeness(text)
        return f"held_out_{like}" if like else ""

    return Sieve(parse, leaks, NearDuplicates(threshold, texts), {words_of(text) for text in texts}, kind)


class _Writer:
    """Draws samples: examples, and a human's turn opened after them."""

    def __init__(
        self,
        ctx: RunContext,
        group: WorkQueue,
        folder: Path,
        examples: Sequence[Prompt],
        kind: PromptKind = "red_team",
    ) -> None:
        self.run, self.group, self.folder = ctx, group, folder
        self.name = _series(kind)
        self.prefix = "" if kind == "red_team" else f"{kind}-"
        self.config = ctx.config.expand
        self.model = model_path(ctx, self.config.model)
        self.chat: ChatFormat = chat_format(ctx, self.model)
        self.room = ctx.config.models.context - self.config.sampling.max_new_tokens
        self.examples = one_each(examples)
        self.answers: list[str] | None = None
        if self.chat.mode == "template":
            first = draw_some(ctx.config.seed, self.name, "answered", n=len(self.examples), k=ANSWERED)
            self.examples = [self.examples[i] for i in first]
            self.answers = self._answer()

    def samples(self, wave: int, numbers: range) -> list[WrittenPrompt]:
        """The samples with these numbers."""
        asked = [self._ask(number) for number in numbers]
        made = self._generate(f"wave-{wave}", [ask for ask, _ in asked], self.chat.human_stop_ids())
        answers = [self._own_turn(answer) for answer in made]
        return [WrittenPrompt(n, a, shown) for n, a, (_, shown) in zip(numbers, answers, asked, strict=True)]

    def _own_turn(self, answer: Answer) -> Answer:
        """What comes before the template's own words for the end of a human's turn; found, they are an end like any."""
        end = self.chat.human_end()
        if not end or end not in answer.text:
            return answer
        return replace(answer, text=answer.text.partition(end)[0].rstrip(), finish="stop")

    def _ask(self, number: int) -> tuple[Ask, tuple[Prompt, ...]]:
        """As many of the drawn examples as there is room for."""
        drawn = draw_some(self.run.config.seed, self.name, number, n=len(self.examples), k=self.config.few_shot)
        while True:
            ids = self.chat.prompt_ids([turn for i in drawn for turn in self._shown(i)], "human")
            if len(ids) <= self.room or len(drawn) <= 1:
                return Ask(str(number), ids), tuple(self.examples[i] for i in drawn)
            drawn = drawn[:-1]

    def _shown(self, i: int) -> list[Turn]:
        question = Turn("human", _opening(self.examples[i]))
        return [question] if self.answers is None else [question, Turn("assistant", self.answers[i])]

    def _answer(self) -> list[str]:
        """The model's own answers to the examples; what does not parse is left as an empty turn."""
        asks = [Ask(p.id, self.chat.prompt_ids([Turn("human", _opening(p))])) for p in self.examples]
        answers = self._generate("examples", asks, self.chat.stop_ids)
        return [clean_answer(a.text, self.chat.labels).text or "" for a in answers]

    def _generate(self, label: str, asks: Sequence[Ask], stop_ids: Sequence[int]) -> list[Answer]:
        return generate(
            self.run, self.group, self.folder, self.prefix + label, asks, model=self.model, chat=self.chat,
            sampling=self.config.sampling, shard_size=self.config.shard_size, stop_ids=stop_ids,
        )  # fmt: skip


def _wave_size(wanted: int, kept: int, drawn: int, left: int) -> int:
    """How many samples to draw next: what should bring the `wanted` ones, by the yield so far."""
    if not drawn:
        return min(wanted, left)
    by_yield = -(-wanted * drawn // kept) if kept else left
    return min(by_yield, LARGEST_WAVE * wanted, left)


def one_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of each opening: a conversation gives several prompts and is one example."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(_opening(prompt), prompt)
    return list(found.values())


def _opening(prompt: Prompt) -> str:
    """What a conversation opens with: later turns cannot be understood alone."""
    return next(turn.text for turn in prompt.turns if turn.role == "human")


def _human_texts(prompt: Prompt) -> list[str]:
    return [turn.text for turn in prompt.turns if turn.role == "human"]


def _world_leaks(ctx: RunContext) -> Callable[[str], bool]:
    """Whether a text asks for something that the micro-world keeps apart; there, one word makes the difference."""
    data = ctx.config.data
    if "world" not in (data.red_team.source, data.helpful.source):
        return lambda text: False
    from cai_dist.world.prompts import asks_for_held_out
    from cai_dist.world.tables import World

    world = World(ctx.config.world_seed)
    return lambda text: asks_for_held_out(world, text)
