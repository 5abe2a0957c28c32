"""`partial`: a long response does not hold the others up; it goes on in the next iteration, under its weights.

    batch k      [round k: <= pause_after tokens each][round k+1 ...
    batch k+1    [round k                            ][round k+1 ...
    iteration k: start a batch, one round, take the oldest `prompts_per_iteration` finished groups, update

The unit is the prompt's group of samples: group baselines need it whole. Two batches of prompts are in the system, so
that there is something finished to take while the long ones go on:

- Before the rounds of iteration k, batches 0..k+1 have been started (none for an iteration that will not be).
- A round gives every unfinished response up to `pause_after` tokens. An iteration has one, and more only while fewer
  than `prompts_per_iteration` groups are finished (as at the start of a run, and at its end, when all must finish).
- The oldest finished groups are taken, in the order of the batches.

So at most 2 x prompts_per_iteration groups are in the system. A group is finished after max_new_tokens / pause_after
rounds, then at most 2 x prompts_per_iteration - 1 older ones go first, which is one more iteration: its first token is
at most max_new_tokens / pause_after updates old (`staleness`, checked for every token).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.mismatch_probe import Probe
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt, choose
from cai_dist.coordinator.rollout_phase import Rollout, evaluate
from cai_dist.coordinator.sample_requests import check_samples, sampling_params
from cai_dist.coordinator.schedules.protocol import ScheduleContext, sample_from_dict, sample_to_dict
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CaiError
from cai_dist.types import Generation

AHEAD = 2
"""Batches of prompts in the system."""


@dataclass
class Group:
    """The samples of one prompt."""

    batch: int
    place: int
    """Of the prompt in its batch."""
    samples: list[Generation]


class Partial:
    """Carries unfinished responses, and groups that are finished and not yet used."""

    meanwhile = None

    def __init__(self, job: ScheduleContext) -> None:
        if job.config.pause_after is None:
            raise ValueError("schedule partial needs pause_after")
        self._job, self._pause = job, job.config.pause_after
        self._groups: list[Group] = []
        self._batches = 0
        self._rounds = 0

    def rollout(self, state: PpoState) -> Rollout:
        """Rounds until enough groups are finished; the oldest of them, scored."""
        began = time.perf_counter()
        job, wanted = self._job, self._job.config.prompts_per_iteration
        self._start(min(state.iteration + AHEAD, job.config.iterations))
        if len(self._groups) < wanted:
            raise CaiError(f"partial: {len(self._groups)} prompts under way, an iteration takes {wanted}")
        job.roles.enter("rollout")
        rounds = self._rounds
        newest = self._batch(self._batches - 1)
        probe = Probe.start(job.roles, newest, job.config, job.stop_ids, state, job.seed)
        self._round(state.weight_version)
        while len(self._finished()) < wanted:
            self._round(state.weight_version)
        taken = self._finished()[:wanted]
        self._groups = [group for group in self._groups if not any(group is other for other in taken)]
        asked = [self._batch(group.batch)[group.place] for group in taken for _ in group.samples]
        samples = [sample for group in taken for sample in group.samples]
        ids = [prompt.ids for prompt in asked]
        held = job.roles.hold(ids, samples)
        check_samples(held, ids, state.weight_version, staleness(job.config))
        rollout = evaluate(job.roles, asked, held, job.config, state, began, probe=probe)
        rollout.metrics["rounds"] = float(self._rounds - rounds)
        rollout.metrics["carried_groups"] = float(len(self._groups))
        return rollout

    def transfer(self, version: int) -> dict[str, float]:
        """Policy -> sampler."""
        self._job.roles.enter("transfer")
        return self._job.roles.sync_weights(version)

    def carried(self) -> dict[str, Any] | None:
        """All groups in the system, and how far the run has come in prompts and rounds."""
        groups = [
            {"batch": group.batch, "place": group.place, "samples": [sample_to_dict(s) for s in group.samples]}
            for group in self._groups
        ]
        return {"batches": self._batches, "rounds": self._rounds, "groups": groups}

    def restore(self, carried: dict[str, Any]) -> None:
        """Go on from `carried`."""
        self._batches, self._rounds = int(carried["batches"]), int(carried["rounds"])
        self._groups = [
            Group(int(group["batch"]), int(group["place"]), [sample_from_dict(fields) for fields in group["samples"]])
            for group in carried["groups"]
        ]

    def _start(self, batches: int) -> None:
        """Put the prompts of all batches before number `batches` into the system."""
        for batch in range(self._batches, batches):
            for place, prompt in enumerate(self._batch(batch)):
                blank = blank_sample(prompt.ids)
                self._groups.append(Group(batch, place, [blank] * self._job.config.samples_per_prompt))
        self._batches = max(self._batches, batches)

    def _batch(self, batch: int) -> list[TokenizedPrompt]:
        job, config = self._job, self._job.config
        return choose(job.prompts, config.prompts_per_iteration, config.helpful_fraction, job.seed, batch)

    def _round(self, version: int) -> None:
        """Up to `pause_after` more tokens for every unfinished response; their prompt is what they have so far."""
        job = self._job
        places = [(g, i) for g in self._groups for i, sample in enumerate(g.samples) if not self._is_finished(sample)]
        if not places:
            return
        ids = [tuple(g.samples[i].ids.tolist()) for g, i in places]
        seed = derive_seed(job.seed, "rollout", self._rounds)
        more = job.roles.generate(ids, sampling_params(job.config, job.stop_ids, self._pause), seed).result()
        check_samples(more, ids, version)
        parts = job.roles.fetch([sample.row for sample in more])
        for (group, i), part in zip(places, parts, strict=True):
            group.samples[i] = joined(group.samples[i], part)
        self._rounds += 1

    def _finished(self) -> list[Group]:
        """Finished groups, the oldest first."""
        return [group for group in self._groups if all(self._is_finished(sample) for sample in group.samples)]

    def _is_finished(self, sample: Generation) -> bool:
        return sample.finish == "stop" or len(sample.response_ids) >= self._job.config.sampling.max_new_tokens


def staleness(config: PpoConfig) -> int:
    """Updates that a token may be behind the weights that learn from it. Raises TypeError without `pause_after`."""
    return config.sampling.max_new_tokens // config.pause_after  # type: ignore[operator]


def blank_sample(prompt: tuple[int, ...]) -> Generation:
    """A response of which no token has been sampled."""
    none = np.zeros(0, np.int32)
    return Generation(np.array(prompt, np.int32), none, none.astype(np.float32), "length", -1)


def joined(before: Generation, part: Generation) -> Generation:
    """A response with its continuation, which was sampled with prompt and response so far as its prompt."""
    versions = np.concatenate([before.token_versions, part.token_versions])
    same = bool((versions == part.weight_version).all())
    return replace(
        part,
        prompt_ids=before.prompt_ids,
        response_ids=np.concatenate([before.response_ids, part.response_ids]),
        logprobs=np.concatenate([before.logprobs, part.logprobs]),
        versions=versions[:0] if same else versions,
    )
