"""What the run's preference models say of revisions, models and snapshots, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.elo import KINDS
from cai_dist.stages.evaluation.judges import AnswerScores, Given, RewardJudge, followed, scores_of
from cai_dist.stages.tables.intervals import Figure, by_prompt, mean_figure
from cai_dist.stages.tables.records import Revision, Sampled


def preference_scores(
    ctx: RunContext, rewards: RewardJudge, samples: Mapping[str, Sequence[Sampled]], revisions: Sequence[Revision]
) -> dict[str, Any]:
    """`pm_score_by_revision`, the mean raw score of the answers after each round (over the prompts of
    `judges.followed`, the same in every round), and with two preference models
    `robustness`: by model or snapshot and kind of prompt, the scores of the model that PPO learned from (`first`) and
    of the other one (`second`). They part where the policy has learned the first one's faults (2204.05862, the
    robustness experiments)."""
    answers = [(s.prompt, s.response) for sampled in samples.values() for s in sampled]
    rounds = [[(r.prompt, r.response) for r in own] for own in zip(*followed(revisions), strict=True)]
    rewards.answers.of(answers + [answer for after in rounds for answer in after], "evaluate: scores")
    found: dict[str, Any] = {"pm_score_by_revision": [_mean_score(rewards.answers, after) for after in rounds]}
    if ctx.config.preference.halves:
        second = scores_of(ctx, str(ctx.paths.second_model))
        second.of(answers, "evaluate: second preference model")
        found["robustness"] = {
            name: {
                kind: {
                    "first": _mean_score(rewards.answers, said),
                    "second": _mean_score(second, said),
                }
                for kind in KINDS.values()
                if (said := [(s.prompt, s.response) for s in sampled if s.prompt.kind == kind])
            }
            for name, sampled in samples.items()
        }
    return found


def _mean_score(scores: AnswerScores, answers: Sequence[Given]) -> Figure:
    values = scores.of(answers, "evaluate: scores")
    return mean_figure(by_prompt((p, value) for (p, _), value in zip(answers, values, strict=True)))
