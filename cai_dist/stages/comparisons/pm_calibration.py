"""What is measured of a preference model on comparisons that nothing has learned from: accuracy and calibration for
each source of labels, what length does to the scores, a temperature, and how far two models agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cai_dist.config.seeds import stable_seed
from cai_dist.data.chat import ChatFormat
from cai_dist.losses.calibration import brier_score, expected_calibration_error, reliability_bins, same_side
from cai_dist.losses.temperature import fit_temperature, sigmoid
from cai_dist.stages.comparisons.pairs import decided, scored_pair
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.answer_scoring import score_texts
from cai_dist.stages.tables.intervals import pooled_proportion
from cai_dist.types import Comparison

SOURCES = ("ai", "human")


@dataclass(frozen=True)
class Measured:
    """A held-out comparison with the raw scores of both answers and their lengths in tokens, end token included."""

    comparison: Comparison
    scores: tuple[float, float]
    lengths: tuple[int, int]

    @property
    def margin(self) -> float:
        """Score of A less score of B."""
        return self.scores[0] - self.scores[1]

    @property
    def p_a(self) -> float:
        """The label."""
        return self.comparison.p_a

    @property
    def right(self) -> float:
        """1 where the model is on the label's side, 0 where not, 1/2 for scores that are the same."""
        return same_side(self.margin, self.p_a - 0.5)

    @property
    def longer_by(self) -> int:
        """Tokens that A has more than B."""
        return self.lengths[0] - self.lengths[1]


def score_comparisons(
    ctx: RunContext, chat: ChatFormat, model: Path, comparisons: Sequence[Comparison], phase: str
) -> list[Measured]:
    """The comparisons that are no ties and whose sides fit into the context, scored by `model`."""
    known, lengths = [], []
    for c in decided(comparisons):
        pair = scored_pair(chat, c)
        if max(len(pair.ids_a), len(pair.ids_b)) <= ctx.config.models.context:
            known.append(c)
            lengths.append((len(pair.ids_a) - pair.prompt_tokens, len(pair.ids_b) - pair.prompt_tokens))
    texts = [(c.prompt.turns, answer) for c in known for answer in (c.response_a, c.response_b)]
    found = score_texts(ctx, str(model), chat, texts, phase) if texts else []
    scores = zip(found[::2], found[1::2], strict=True)
    return [Measured(c, pair, size) for c, pair, size in zip(known, scores, lengths, strict=True)]


def by_source(measured: Sequence[Measured], calibrate: bool) -> dict[str, Any]:
    """`source_figures` of the AI's labels and of people's, where there are any."""
    apart = {source: [m for m in measured if m.comparison.source == source] for source in SOURCES}
    return {source: source_figures(found, calibrate) for source, found in apart.items() if found}


def source_figures(measured: Sequence[Measured], calibrate: bool) -> dict[str, Any]:
    """`n` comparisons of `prompts`; `accuracy` with its 95% interval `low`..`high`, over prompts; `ece`, `brier` and
    the `reliability` table of sigma(margin) against the label itself (a probability); `mean_score`; `length` (see
    `length_figures`) and, with `calibrate`, `temperature` (see `temperature_figures`)."""
    chance, labels = [sigmoid(m.margin) for m in measured], [m.p_a for m in measured]
    right = pooled_proportion((m.comparison.prompt, m.right) for m in measured)
    figures: dict[str, Any] = {
        "n": len(measured),
        "prompts": right["n"],
        "accuracy": right["value"],
        "low": right["low"],
        "high": right["high"],
        "ece": expected_calibration_error(chance, labels),
        "brier": brier_score(chance, labels),
        "mean_score": fmean(score for m in measured for score in m.scores),
        "reliability": [asdict(part) for part in reliability_bins(chance, labels)],
        "length": length_figures(measured),
    }
    return {**figures, "temperature": temperature_figures(measured)} if calibrate else figures


def length_figures(measured: Sequence[Measured]) -> dict[str, float | int | None]:
    """Does the model score length?

    Returns: `score_correlation` of score and length over all answers, `margin_correlation` of the differences of both
        within pairs (the prompt plays no part in it); over the `n` pairs of different lengths `longer_wins`, the
        accuracy of "the longer is better", and `longer_preferred`, how often the model scores the longer one higher;
        the model's `accuracy_longer_better` and `accuracy_longer_worse` on those where the label agrees and where it
        does not (`n_longer_worse`). None where there is nothing to count.
    """
    uneven = [m for m in measured if m.longer_by]
    better = [m for m in uneven if (m.longer_by > 0) == (m.p_a > 0.5)]
    worse = [m for m in uneven if (m.longer_by > 0) != (m.p_a > 0.5)]
    return {
        "score_correlation": correlation(
            [float(size) for m in measured for size in m.lengths], [score for m in measured for score in m.scores]
        ),
        "margin_correlation": correlation([float(m.longer_by) for m in measured], [m.margin for m in measured]),
        "n": len(uneven),
        "longer_wins": _share([True] * len(better) + [False] * len(worse)),
        "longer_preferred": _share([same_side(m.margin, m.longer_by) for m in uneven]),
        "accuracy_longer_better": _share([m.right for m in better]),
        "accuracy_longer_worse": _share([m.right for m in worse]),
        "n_longer_worse": len(worse),
    }


def temperature_figures(measured: Sequence[Measured]) -> dict[str, float | int] | None:
    """A temperature fitted on the comparisons of one half of the prompts, and calibration on the other half without it
    (`ece_before`, `brier_before`) and with it. None where a half is empty."""
    fit = [m for m in measured if stable_seed("temperature", m.comparison.prompt.id) % 2 == 0]
    rest = [m for m in measured if stable_seed("temperature", m.comparison.prompt.id) % 2 == 1]
    if not fit or not rest:
        return None
    temperature = fit_temperature([m.margin for m in fit], [m.p_a for m in fit])
    labels = [m.p_a for m in rest]
    figures: dict[str, float | int] = {"temperature": temperature, "n_fit": len(fit), "n": len(rest)}
    for name, t in (("before", 1.0), ("after", temperature)):
        chance = [sigmoid(m.margin / t) for m in rest]
        figures[f"ece_{name}"] = expected_calibration_error(chance, labels)
        figures[f"brier_{name}"] = brier_score(chance, labels)
    return figures


def agreement_figures(one: Sequence[Measured], other: Sequence[Measured]) -> dict[str, float | int | None]:
    """How often two models prefer the same answer of a pair (`agreement`; 1/2 where one prefers none), and the
    `correlation` of their margins."""
    same = [same_side(a.margin, b.margin) for a, b in zip(one, other, strict=True)]
    return {
        "n": len(same),
        "agreement": _share(same),
        "correlation": correlation([m.margin for m in one], [m.margin for m in other]),
    }


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None for fewer than two points or where one side does not vary."""
    if len(xs) < 2:
        return None
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs) * math.fsum((y - mean_y) ** 2 for y in ys)
    if spread <= 0:
        return None
    together = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return max(-1.0, min(1.0, together / math.sqrt(spread)))


def _share(hits: Sequence[float]) -> float | None:
    return sum(hits) / len(hits) if hits else None
