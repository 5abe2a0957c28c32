"""Transcripts that a person can read, in Markdown. Models' words are quoted line by line, never interpreted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cai_dist.stages.tables.records import Expanded, Revision, Sampled
from cai_dist.tracking.atomic import write_text
from cai_dist.types import Prompt, Turn


def quote(text: str) -> str:
    """`text` as a literal block: indented by four spaces, so that no Markdown or HTML in it takes effect."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (nothing)"


def conversation(turns: Iterable[Turn]) -> str:
    """A conversation as literal blocks with the speakers in front."""
    return "\n\n".join(f"**{t.role}**\n\n{quote(t.text)}" for t in turns)


def write_expansion_transcripts(
    path: Path, kept: Sequence[Expanded], refused: Mapping[str, Sequence[str]], prompts: int = 24
) -> None:
    """The first `prompts` new prompts, and for each reason some samples that were not used."""
    parts = ["# Prompts that the model wrote\n"]
    parts += [f"## {x.prompt.id} (sample {x.sample})\n\n{conversation(x.prompt.turns)}\n" for x in kept[:prompts]]
    for reason, texts in sorted(refused.items()):
        parts.append(f"## not used: {reason}\n\n" + "\n\n".join(quote(text) for text in texts) + "\n")
    write_text(path, "\n".join(parts))


def write_revision_transcripts(path: Path, revisions: Sequence[Revision], prompts: int = 12) -> None:
    """The first `prompts` prompts with every answer, principle, critique and revision."""
    shown = list(dict.fromkeys(r.prompt.id for r in revisions))[:prompts]
    parts = ["# Critiques and revisions\n"]
    for prompt_id in shown:
        rounds = [r for r in revisions if r.prompt.id == prompt_id]
        parts.append(f"## {prompt_id}\n\n{conversation(rounds[0].prompt.turns)}\n")
        for r in rounds:
            if r.round == 0:
                parts.append(f"**first answer**\n\n{quote(r.response)}\n")
                continue
            note = f" (not used: {r.failure})" if r.failure else ""
            parts.append(f"### Round {r.round}, principle {r.principle_id or 'none'}{note}\n")
            if r.critique:
                parts.append(f"**critique**\n\n{quote(r.critique)}\n")
            parts.append(f"**revision**\n\n{quote(r.response)}\n")
    write_text(path, "\n".join(parts))


def write_evaluation_transcripts(
    jsonl: Path, markdown: Path, samples: Mapping[str, Sequence[Sampled]], prompts: int
) -> list[Path]:
    """The models' answers side by side, for `prompts` prompts of each kind: JSONL for programs, Markdown for people."""
    answers: dict[str, dict[str, str]] = {}
    shown: dict[str, Prompt] = {}
    for model, sampled in samples.items():
        for s in sampled:
            answers.setdefault(s.prompt.id, {}).setdefault(model, s.response)
            shown.setdefault(s.prompt.id, s.prompt)
    of_kind = {kind: [p for p in shown.values() if p.kind == kind][:prompts] for kind in ("red_team", "helpful")}
    lines, parts = [], ["# Held-out prompts, model by model\n"]
    for prompt in (p for kind in of_kind.values() for p in kind):
        said = answers[prompt.id]
        asked = "\n".join(f"{t.role}: {t.text}" for t in prompt.turns)
        lines.append(json.dumps({"id": prompt.id, "kind": prompt.kind, "prompt": asked, **said}, ensure_ascii=False))
        parts.append(f"## {prompt.id} ({prompt.kind})\n\n{conversation(prompt.turns)}\n")
        parts += [f"### {model}\n\n{quote(text)}\n" for model, text in said.items()]
    write_text(jsonl, "".join(line + "\n" for line in lines))
    write_text(markdown, "\n".join(parts))
    return [jsonl, markdown]
