"""The roles of PPO as worker groups: the real `cai_dist.coordinator.protocols.PpoRoles`.

Samples are split over the ranks of a role into equal schedules and come back in their order. Calls return at once; two
groups work at the same time, calls on one group queue up in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cai_dist.cluster.futures import PendingCallParts, PendingCalls
from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.object_refs import fetched, kept
from cai_dist.cluster.ppo.memory_log import MemoryLog
from cai_dist.cluster.ppo.offload_plan import OffloadPlan
from cai_dist.cluster.ppo.reward_terms import ROLE, CombinedScores, RewardTerms, reward_terms_spec
from cai_dist.cluster.ppo.specs import PpoModels, ppo_specs
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.engine import EngineConfig
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import TimeoutsConfig
from cai_dist.config.training import Dtype, ExportConfig, HeadDtype, Layout
from cai_dist.data.schedule import BatchPlan, plan_items
from cai_dist.data.thoughts import NO_THOUGHTS, ThoughtIds
from cai_dist.errors import ConfigError
from cai_dist.experience.moments import Whitening
from cai_dist.experience.sample_checks import kept_samples, samples_of
from cai_dist.experience.trajectories import Sums, TrajectoryRequest
from cai_dist.registry import is_path
from cai_dist.types import (
    GenerateRequest,
    Generation,
    Phase,
    RemoteRow,
    SampleRef,
    SamplingParams,
    Span,
    StepShard,
    TrajectoryRef,
    rows_of,
)
from cai_dist.workers.prompt_table import PromptTable

__all__ = ["PpoGroups", "PpoModels"]


class PpoGroups:
    """Starts the groups that the algorithm needs on `cluster`; a context manager that gives them back: for the next
    stage (`Cluster.keep`), closed where it ends with an error.

    `end_id`: the token that closes an answer in the preference model's training data. `thoughts`: how what is not
    scored before an answer opens and closes. `prompts`: for reward terms of one's own. `threads`: CPU threads of a
    worker of each role; default 1.
    `policy_steps` and `value_steps`: lengths of the two learning-rate schedules.

    Raises: ConfigError for a greedy sampler (there is nothing to learn from) and what `Cluster.launch` raises.
    """

    def __init__(
        self,
        cluster: Cluster,
        ppo: PpoConfig,
        models: PpoModels,
        *,
        dtype: Dtype,
        layout: Layout = "packed",
        head_dtype: HeadDtype = "model",
        export: ExportConfig | None = None,
        end_id: int,
        thoughts: ThoughtIds = NO_THOUGHTS,
        policy_steps: int,
        value_steps: int,
        seed: int,
        timeouts: TimeoutsConfig,
        threads: Mapping[str, int] | None = None,
        engine: EngineConfig | None = None,
        prompts: PromptTable | None = None,
    ) -> None:
        if ppo.sampling.temperature == 0:
            raise ConfigError("ppo.sampling.temperature=0: PPO learns from sampled answers; set it above 0")
        self._ppo, self._layout = ppo, layout
        engine = engine or EngineConfig()
        self._rows = engine.max_rows
        specs = ppo_specs(
            ppo,
            models,
            dtype=dtype,
            layout=layout,
            head_dtype=head_dtype,
            export=export or ExportConfig(),
            end_id=end_id,
            thoughts=thoughts,
            policy_steps=policy_steps,
            value_steps=value_steps,
            seed=seed,
            timeouts=timeouts,
            threads=threads or {},
            engine=engine,
            prompts=prompts,
        )
        specs += reward_terms_spec(ppo, prompts, (threads or {}).get(ROLE, 1))
        self._cluster = cluster
        self._groups: dict[str, WorkerGroup] = cluster.launch(specs)
        own_code = {ROLE} | ({"rollout"} if ppo.environment and is_path(ppo.environment.use) else set())
        self._reusable = {s.role: s for s in specs if engine.leaves_nothing and s.role not in own_code}
        self._terms = RewardTerms(ppo.rewards, self._groups.get(ROLE))
        self.seats = cluster.seats
        """Where every worker is."""
        self._offload_plan = OffloadPlan(self._groups, ppo.shared_groups)
        self._memory = MemoryLog(self._groups)
        self._phase: Phase | None = None
        self._version: int | None = None
        self._transfer = WeightTransfer(
            self._groups["policy"],
            self._groups["rollout"],
            ppo.transfer,
            int(ppo.transfer_bucket_mb * 2**20),
            timeouts.collective,
            engines_stay=ppo.rollout_alone,
        )

    def __enter__(self) -> PpoGroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close()
            return
        for role, group in self._groups.items():
            if role in self._reusable:
                self._cluster.keep(group, self._reusable[role])
            else:
                group.close()

    def close(self) -> None:
        """End all workers."""
        for group in self._groups.values():
            group.close()

    def enter(self, phase: Phase) -> None:
        """What follows belongs to `phase`: in groups of roles that share GPUs, what it does not need leaves them before
        what it needs comes. See `cai_dist.cluster.ppo.offload_plan`."""
        self._memory.ends(self._phase or "start")
        self._offload_plan.enter(phase)
        self._phase = phase

    def memory(self) -> dict[str, float]:
        """`memory_<role>_mb`: peaks of the workers since this was last asked, as far as they are known by now."""
        return self._memory.recent()

    def reward_metrics(self) -> dict[str, float]:
        """`reward_NAME` and `reward_NAME_seconds` of each term since this was last asked, where there are several."""
        return self._terms.metrics()

    @property
    def memory_peaks(self) -> dict[str, dict[str, float]]:
        """Role -> phase -> largest peak of a worker so far, MiB."""
        return self._memory.peaks

    @property
    def notes(self) -> list[str]:
        """What could not leave a shared GPU, one line each."""
        return self._offload_plan.notes

    def spans(self) -> list[Span]:
        """What every worker has done since this was last asked; one small call to each. Where phases are not told
        apart, peaks of memory come with it."""
        memory = not self._memory.by_phase
        spans = []
        asked = [(role, group.report(memory)) for role, group in self._groups.items()]
        for role, reports in asked:
            for report in reports.result():
                spans += report.spans
                if report.memory:
                    self._memory.note(role, report.memory)
        return spans

    # ---- rollout phase

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int
    ) -> PendingCallParts[SampleRef]:
        """One response per prompt. The samples depend on prompts, sampling, seed and weights alone."""
        group = self._groups["rollout"]
        size = self._ppo.rollout_request(len(prompts), len(group), self._rows)
        starts = range(0, len(prompts), size)
        requests = [
            GenerateRequest(tuple(prompts[start : start + size]), sampling, seed, first=start) for start in starts
        ]

        def read(number: int, answer: Any) -> list[SampleRef]:
            ref, facts = answer
            return samples_of(group.kept(number % len(group), ref, len(facts)), facts)

        return PendingCallParts(group.deal("generate", "sample", requests), starts, read)

    def fetch(self, rows: Sequence[RemoteRow[Any]]) -> list[Any]:
        """What rows stand for. Raises WorkerDied where the worker that keeps them is gone."""
        return fetched(rows, self._phase or "start")

    def hold(self, prompts: Sequence[tuple[int, ...]], samples: Sequence[Generation]) -> list[SampleRef]:
        """Samples that the driver has, put where workers find them. Raises CaiError where they are not of `prompts`."""
        ref, facts = kept(kept_samples(prompts, samples))
        return samples_of(rows_of(ref, len(facts), "coordinator"), facts)

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> PendingCalls[list[RemoteRow[Any]]]:
        """Per sample, the log-probability (nats) of each response token under the policy."""
        return self._score_kept("policy", "policy log-probs", "logprobs", samples, temperature)

    def reference_logprobs(
        self, samples: Sequence[SampleRef], temperature: float
    ) -> PendingCalls[list[RemoteRow[Any]]]:
        """Per sample, log-probabilities (nats) of the response under the reference: its own workers, or with `ppo.lora`
        the policy ranks with the adapter off."""
        role, method = ("reference", "logprobs") if self._ppo.lora is None else ("policy", "reference_logprobs")
        return self._score_kept(role, "reference log-probs", method, samples, temperature)

    def values(self, samples: Sequence[SampleRef]) -> PendingCalls[list[RemoteRow[Any]]]:
        """Per sample, V of the state before each response token and, last, of the state after them."""
        return self._score_kept("value", "values", "values", samples)

    def scores(self, samples: Sequence[SampleRef]) -> PendingCalls[list[float]] | CombinedScores:
        """Per sample, its raw score: that (logits) of the preference model, or the sum of `ppo.rewards`."""
        model = self._model_scores(samples) if self._ppo.rewards_model else None
        return model if model is not None and self._ppo.plain_rewards else self._terms.scores(samples, model)

    def make_trajectories(self, request: TrajectoryRequest) -> PendingCalls[tuple[list[RemoteRow[Any]], list[Sums]]]:
        """What is trained on, made by the policy ranks; each takes the samples of some prompts."""
        group = self._groups["policy"]
        parts = request.parts(len(group), self._ppo.samples_per_prompt)

        def read(answers: list[Any]) -> tuple[list[RemoteRow[Any]], list[Sums]]:
            rows = [group.kept(rank, ref, len(parts[rank].samples)) for rank, (ref, _) in enumerate(answers)]
            return [row for of_rank in rows for row in of_rank], [sums for _, sums in answers]

        return group.deal("make trajectories", "make_trajectories", parts).then(read)

    # ---- update phase

    def update_policy(
        self, batch: Sequence[TrajectoryRef], denominator: float, kl_coefficient: float, whitening: Whitening | None
    ) -> PendingCalls[dict[str, float]]:
        """One optimiser step of the policy. Metrics are means over the response tokens of the whole batch."""
        return self._update("policy", "policy update", batch, denominator, kl_coefficient, whitening)

    def update_value(self, batch: Sequence[TrajectoryRef]) -> PendingCalls[dict[str, float]]:
        """One optimiser step of the value model; its loss is a mean over response tokens, as are its metrics."""
        return self._update("value", "value update", batch, float(sum(item.response_tokens for item in batch)))

    def sync_weights(self, version: int) -> dict[str, float]:
        """Policy ranks -> rollout workers; returns {"seconds", "bytes", "calls"}."""
        self._version = version
        numbers = self._transfer.run(version)
        for role in ("policy", "rollout"):
            self._groups[role].holds(version)
        return numbers

    # ---- checkpoints

    def save(self, folder: Path) -> None:
        """The trained engines, with optimisers and the RNG of every rank. Where rollout workers have to make room for
        that, they get the same weights again afterwards."""
        before = self._phase
        self.enter("update")
        self._on_trained("save", folder)
        if self._version is not None and not self._offload_plan.keeps_rollout("update"):
            self.enter("transfer")
            self.sync_weights(self._version)
        if before is not None:
            self.enter(before)

    def load(self, folder: Path) -> None:
        """Go on from `save`; rollout workers keep their weights (or none) until the next `sync_weights`."""
        self.enter("update")
        self._on_trained("load", folder)

    def export(self, folder: Path) -> None:
        """The policy in the Hugging Face layout, with its tokenizer."""
        self._groups["policy"].broadcast("export", "export", str(folder))

    # ---- how work is split

    def _plan(self, role: str, items: Sequence[SampleRef | TrajectoryRef]) -> BatchPlan:
        """Which rank computes what; the scoring roles have the policy's limits, and compute whole sequences. The reward
        model closes an answer that was cut off with the end token."""
        sharding = self._ppo.passes_of(role)
        added = 1 if role == "reward" else 0
        return plan_items(items, len(self._groups[role]), sharding, self._layout, added=added)

    def _start(
        self,
        role: str,
        phase: str,
        method: str,
        plan: BatchPlan,
        items: Sequence[SampleRef | TrajectoryRef],
        *args: Any,
        **more: Any,
    ) -> PendingCalls[list[Any]]:
        """`method` on every rank, about its part of the items; they travel as rows."""
        shards = [StepShard(part, **more) for part in plan.split([item.row for item in items])]
        return self._groups[role].start(phase, method, shards, *args)

    def _model_scores(self, samples: Sequence[SampleRef]) -> PendingCalls[list[float]]:
        plan = self._plan("reward", samples)
        return self._start("reward", "scores", "scores", plan, samples).then(plan.restore)

    def _score_kept(
        self, role: str, phase: str, method: str, samples: Sequence[SampleRef], *args: Any
    ) -> PendingCalls[list[RemoteRow[Any]]]:
        group, plan = self._groups[role], self._plan(role, samples)
        counts = [sum(map(len, parts)) for parts in plan.parts]

        def read(answers: list[Any]) -> list[RemoteRow[Any]]:
            return plan.restore([group.kept(rank, ref, counts[rank]) for rank, (ref, _) in enumerate(answers)])

        return self._start(role, phase, method, plan, samples, *args).then(read)

    def _update(
        self, role: str, phase: str, batch: Sequence[TrajectoryRef], denominator: float, *args: Any
    ) -> PendingCalls[dict[str, float]]:
        plan = self._plan(role, batch)
        return self._start(role, phase, "train_step", plan, batch, *args, denominator=denominator).then(_first)

    def _on_trained(self, method: str, folder: Path) -> None:
        waits = [
            self._groups[role].start(method, method, [str(folder / role)] * len(self._groups[role]))
            for role in self._ppo.trained_roles
        ]
        for wait in waits:
            wait.result()


def _first(results: list[dict[str, float]]) -> dict[str, float]:
    """Metrics are summed over ranks already: they are the same on each."""
    return results[0]
