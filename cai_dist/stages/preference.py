"""Stage 4: the preference model: one scalar per answer, learned from soft AI labels and human helpfulness labels
(2212.08073, section 4.1; 2204.05862, section 3: the score is read at the last token of the whole conversation)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_dist.config.run import RunConfig
from cai_dist.data.chat import ChatFormat
from cai_dist.stages import prepare
from cai_dist.stages.chats import chat_format
from cai_dist.stages.context import RunContext, model_settings
from cai_dist.stages.groups import export_model, trained_model
from cai_dist.stages.pairs import ai_comparisons, decided, log_heldout, training_pairs
from cai_dist.stages.scoring import score_texts
from cai_dist.stages.training import ds_files, total_steps, train
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Comparison

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
    if not target.is_dir():
        pairs = training_pairs(run, NAME, chat, config.helpful_fraction)
        steps = total_steps(len(pairs), config.train, "preference.train")
        with trained_model(run, NAME, "preference", model, config.train, steps) as group:
            train(run, NAME, group, pairs, config.train, lambda batch: float(len(batch)), folder)
            export_model(lambda folder: group.broadcast("preference: export", "export", str(folder)), target)
    write_json(folder / "heldout.json", measure(run, chat, target, ai_comparisons(run, "heldout")))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return [target, folder / "heldout.json"]


def measure(run: RunContext, chat: ChatFormat, model: Path, heldout: Sequence[Comparison]) -> dict[str, Any]:
    """On held-out prompts, without ties: how often sigma(r_A - r_B) is on the AI label's side of one half, and its
    calibration against the label itself (a probability, as in training)."""
    known = decided(heldout)
    texts = [(c.prompt.turns, r) for c in known for r in (c.response_a, c.response_b)]
    found = score_texts(run, str(model), chat, texts, "preference: held-out") if texts else []
    return log_heldout(run, NAME, list(zip(found[::2], found[1::2], strict=True)), [c.p_a for c in known])
