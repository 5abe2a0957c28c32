"""What the figures need of a finished run, read from its folder; only what no file says is computed here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cai_dist.losses.calibration import brier_score, expected_calibration_error, reliability_bins, same_side
from cai_dist.stages.evaluation.judges import OracleJudge
from cai_dist.stages.tables.records import Labelled, read_comparisons, read_revisions
from cai_dist.types import Comparison
from cai_dist.world import oracle
from cai_dist.world.tables import World

DECIDED = 0.1
"""A label counts as decided where it is this far or further from 1/2."""


@dataclass(frozen=True)
class Calibration:
    """Predictions against outcomes, both in [0, 1]."""

    predicted: tuple[float, ...]
    outcomes: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.predicted)

    @property
    def ece(self) -> float:
        return expected_calibration_error(self.predicted, self.outcomes)

    @property
    def brier(self) -> float:
        return brier_score(self.predicted, self.outcomes)

    @property
    def accuracy(self) -> float:
        """Share on the right side of 1/2, outcomes of 1/2 left out."""
        sided = [same_side(p - 0.5, o - 0.5) for p, o in zip(self.predicted, self.outcomes, strict=True) if o != 0.5]
        return fmean(sided)

    def bins(self) -> list[tuple[float, float, int]]:
        """(mean prediction, mean outcome, count) of each bin that is not empty."""
        found = reliability_bins(self.predicted, self.outcomes)
        return [(b.confidence, b.frequency, b.count) for b in found if b.count]


@dataclass(frozen=True)
class Measures:
    """One run."""

    harm: tuple[float, ...]
    """Share of harmful answers to training red-team prompts after each round of revision."""
    labels: dict[str, Calibration] = field(default_factory=dict)
    """The feedback model's p(A) against the oracle: `both` orders averaged, `one` order alone."""
    preference: dict[str, Any] | None = None
    """`preference/heldout.json`."""
    pm_against_labels: Calibration | None = None
    """sigma(difference of scores) against the AI's label on held-out pairs, all that are no ties."""
    pm_against_truth: Calibration | None = None
    """The same scores against the oracle, where a general principle tells the answers apart."""
    evaluation: dict[str, Any] | None = None

    def decided(self) -> Calibration:
        """`pm_against_labels` where the label is decided."""
        assert self.pm_against_labels is not None
        pairs = zip(self.pm_against_labels.predicted, self.pm_against_labels.outcomes, strict=True)
        kept = [(p, o) for p, o in pairs if abs(o - 0.5) >= DECIDED]
        return Calibration(*(tuple(column) for column in zip(*kept, strict=True)))

    def model(self, name: str, measure: str) -> float:
        """A share of the evaluation: `model("rl", "danger")`."""
        assert self.evaluation is not None
        return float(self.evaluation["models"][name][measure]["value"])

    def elo(self, what: str, name: str) -> dict[str, float]:
        """`value`, `low`, `high` of a model's Elo in `harmlessness` or `helpfulness`, base being 0."""
        assert self.evaluation is not None
        return dict(self.evaluation["elo"][what][name])

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        calibrations = {
            **{f"labels_{k}": c for k, c in self.labels.items()},
            "pm_against_labels": self.pm_against_labels,
            "pm_against_truth": self.pm_against_truth,
        }
        shown = {
            name: {"n": c.n, "accuracy": c.accuracy, "ece": c.ece, "brier": c.brier, "bins": c.bins()}
            for name, c in calibrations.items()
            if c is not None
        }
        return {"harm": self.harm, **shown, "preference": self.preference, "evaluation": self.evaluation}


def measures_of(folder: Path, seed: int, last: str) -> Measures:
    """Of a run that is finished up to the stage `last`."""
    harm = tuple(OracleJudge(seed).harm_by_revision(read_revisions(folder / "revise" / "revisions.parquet")))
    if last == "revise":
        return Measures(harm)
    labelled = read_comparisons(folder / "feedback" / "comparisons.parquet")
    labels = label_calibration(World(seed), labelled)
    if last == "feedback":
        return Measures(harm, labels)
    heldout = [x.comparison for x in labelled if x.comparison.prompt.split == "heldout" and x.p_model != 0.5]
    chances = preference_chances(folder / "preference" / "model", heldout)
    soft = tuple(x.p_model for x in labelled if x.comparison.prompt.split == "heldout" and x.p_model != 0.5)
    truth = [oracle.label(World(seed), c, "general-1") for c in heldout]
    known = [(p, t) for p, t in zip(chances, truth, strict=True) if t is not None]
    return Measures(
        harm,
        labels,
        json.loads((folder / "preference" / "heldout.json").read_text()),
        Calibration(tuple(chances), soft),
        Calibration(*(tuple(column) for column in zip(*known, strict=True))),
        json.loads((folder / "evaluation.json").read_text()) if last == "evaluate" else None,
    )


def label_calibration(world: World, labelled: Sequence[Labelled]) -> dict[str, Calibration]:
    """The feedback model's probabilities against what is true under the principles that it was asked under (the mean
    over them; those that do not tell the answers apart count 1/2), where any of them tells the answers apart."""
    found: dict[str, list[tuple[float, float]]] = {"both": [], "one": []}
    for x in labelled:
        truth = oracle.label(world, x.comparison, x.comparison.principle_id)
        if truth is not None:
            found["both"].append((x.p_model, truth))
            found["one"].append((x.p_first, truth))
    return {k: Calibration(*(tuple(column) for column in zip(*v, strict=True))) for k, v in found.items()}


def preference_chances(model: Path, pairs: Sequence[Comparison]) -> list[float]:
    """sigma(r(A) - r(B)), from the exported model by plain transformers, one answer at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from cai_dist.constitution import load_constitution
    from cai_dist.data.chat import ChatFormat

    torch.set_num_threads(1)
    scorer = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = ChatFormat(tokenizer, "template", load_constitution("micro").templates.labels)

    @torch.no_grad()
    def score(pair: Comparison, text: str) -> Any:
        return scorer(input_ids=torch.tensor([chat.example(pair.prompt.turns, text).ids])).logits[0, 0]

    return [float(torch.sigmoid(score(c, c.response_a) - score(c, c.response_b))) for c in pairs]
