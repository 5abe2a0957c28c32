"""Stage 4: the preference model: one scalar per answer, learned from soft AI labels and human helpfulness labels
(2212.08073, section 4.1; 2204.05862, section 3: the score is read at the last token of the whole conversation)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.losses.calibration import expected_calibration_error
from cai_dist.stages import prepare
from cai_dist.stages.chats import chat_format
from cai_dist.stages.context import RunContext, model_settings, stable_seed
from cai_dist.stages.groups import export_model, trained_model
from cai_dist.stages.records import read_comparisons
from cai_dist.stages.scoring import score_texts
from cai_dist.stages.training import ds_files, total_steps, train
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Comparison, ScoredPair

NAME = "preference"


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {
        "preference": config.preference.model_dump(mode="json", exclude={"train": {"checkpoint_every"}}),
        **model_settings(config),
    }


def inputs(run: RunContext) -> list[Path]:
    """Comparisons, the models the trunk may start from, and the user's DeepSpeed file."""
    before = run.run_dir / prepare.NAME
    return [
        run.run_dir / "feedback" / "comparisons.parquet",
        before / "human.parquet",
        before / "models.json",
        run.run_dir / "sft" / "model",
        *ds_files(run.config.preference.train.sharding),
    ]


def run(run: RunContext) -> list[Path]:
    """Train and export `preference/model` (AutoModelForSequenceClassification layout); measure it in `heldout.json`."""
    folder = run.folder(NAME)
    target = folder / "model"
    config = run.config.preference
    model = prepare.model_path(run, "pretrained") if config.init == "pretrained" else str(run.run_dir / "sft" / "model")
    chat = chat_format(run, model)
    ai = [x.comparison for x in read_comparisons(run.run_dir / "feedback" / "comparisons.parquet")]
    human = [x.comparison for x in read_comparisons(run.run_dir / prepare.NAME / "human.parquet")]
    if not target.is_dir():
        mixture = mix([c for c in ai if c.prompt.split == "train"], human, config.helpful_fraction, run.config.seed)
        pairs = _fitting(run, [scored_pair(chat, c) for c in mixture])
        steps = total_steps(len(pairs), config.train, "preference.train")
        with trained_model(run, NAME, "preference", model, config.train, steps) as group:
            train(run, NAME, group, pairs, config.train, lambda batch: float(len(batch)), folder)
            export_model(lambda folder: group.broadcast("preference: export", "export", str(folder)), target)
    heldout = [c for c in ai if c.prompt.split == "heldout"]
    write_json(folder / "heldout.json", measure(run, chat, target, heldout))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return [target, folder / "heldout.json"]


def mix(ai: Sequence[Comparison], human: Sequence[Comparison], fraction: float, seed: int) -> list[Comparison]:
    """All AI comparisons and as many human ones as make `fraction` of the whole, drawn without replacement.

    Raises DataError where there are too few human comparisons (none at all are needed for fraction 0).
    """
    if not ai:
        raise DataError("preference: no AI comparison on a training prompt; stage feedback left none")
    wanted = round(len(ai) * fraction / (1.0 - fraction))
    if wanted > len(human):
        raise DataError(
            f"preference.helpful_fraction={fraction} asks for {wanted} human comparisons beside {len(ai)} AI ones, but "
            f"there are {len(human)}; lower it or give more in data.helpful_comparisons"
        )
    order = sorted(range(len(human)), key=lambda i: stable_seed(seed, "human", i))
    return [*ai, *(human[i] for i in order[:wanted])]


def scored_pair(chat: ChatFormat, c: Comparison) -> ScoredPair:
    """Both sides as token ids: the whole conversation, the answer, the end token."""
    a, b = (chat.example(c.prompt.turns, r).ids for r in (c.response_a, c.response_b))
    return ScoredPair(a, b, c.p_a, c.source)


def measure(run: RunContext, chat: ChatFormat, model: Path, heldout: Sequence[Comparison]) -> dict[str, Any]:
    """On held-out prompts, without ties: how often sigma(r_A - r_B) is on the AI label's side of one half, and its
    calibration against the label itself (a probability, as in training)."""
    decided = [c for c in heldout if c.p_a != 0.5]
    if not decided:
        return {"n": 0, "accuracy": None, "ece": None, "mean_score": 0.0}
    texts = [(c.prompt.turns, r) for c in decided for r in (c.response_a, c.response_b)]
    scores = score_texts(run, str(model), chat, texts, "preference: held-out")
    margins = [scores[2 * i] - scores[2 * i + 1] for i in range(len(decided))]
    truth = [c.p_a > 0.5 for c in decided]
    chance = [1.0 / (1.0 + math.exp(-max(-500.0, min(500.0, m)))) for m in margins]
    numbers = {
        "n": len(decided),
        "accuracy": sum((m > 0) == t for m, t in zip(margins, truth, strict=True)) / len(decided),
        "ece": expected_calibration_error(chance, [c.p_a for c in decided]),
        "mean_score": sum(scores) / len(scores),
    }
    run.tracker.rewind("preference_heldout", -1)
    run.log("preference_heldout", 0, **numbers)
    return numbers


def heldout(run: RunContext) -> dict[str, Any]:
    """What `measure` wrote."""
    return dict(json.loads((run.run_dir / NAME / "heldout.json").read_text()))


def _fitting(run: RunContext, pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    context = run.config.models.context
    kept = [p for p in pairs if max(len(p.ids_a), len(p.ids_b)) <= context]
    run.tracker.rewind(f"{NAME}_data", -1)
    run.log(f"{NAME}_data", 0, pairs=len(kept), too_long=len(pairs) - len(kept))
    return kept
