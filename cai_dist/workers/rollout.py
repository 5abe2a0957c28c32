"""A worker that answers prompts: in the data stages from a folder, in PPO with weights that arrive by transfer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from cai_dist.config.engine import EngineConfig
from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.training import Dtype
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.engines.protocols.rollout import KeepsWeights
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.experience.sample_checks import kept_samples
from cai_dist.types import (
    GenerateRequest,
    Generation,
    KeepRemote,
    LabelRequest,
    MemoryPart,
    RankInfo,
    TensorSpec,
    WeightPart,
    WeightPlan,
    WeightProbe,
    WeightTerms,
)
from cai_dist.types.ragged import Packed
from cai_dist.weight_sync.broadcast import Rendezvous, WeightTaker
from cai_dist.weight_sync.probe import TOLERANCE, refuse_other_answers
from cai_dist.weight_sync.segments import SegmentTaker, SegmentTicket
from cai_dist.workers.base import Worker
from cai_dist.workers.conversation import ConversationSampler
from cai_dist.workers.prompt_table import PromptTable


class RolloutWorker(Worker):
    """One rollout engine. `model` may be empty: then each request names its own; a model stays loaded until a request
    names another. `require_sync`: nothing is served before the first finished weight transfer. `conversations`:
    who speaks between the answers of a sample, and the prompts in words; None: a sample is one answer. `tolerance`:
    `ppo.transfer_tolerance`."""

    def __init__(
        self,
        info: RankInfo,
        *,
        model: str = "",
        dtype: Dtype = "fp32",
        engine: EngineConfig | None = None,
        require_sync: bool = False,
        conversations: tuple[EnvironmentConfig, PromptTable] | None = None,
        tolerance: float | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(info, threads=threads)
        self._conversations = ConversationSampler(*conversations) if conversations else None
        self._engine = build_rollout_engine(engine or EngineConfig(), dtype, require_sync=require_sync)
        self._loaded = ""
        self._taker: WeightTaker | None = None
        self._segments: SegmentTaker | None = None
        self._tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        self._distrusted: str | None = None
        """Why nothing is served though the engine would: it has failed the probe of its last transfer."""
        self._use(model)

    def generate(self, request: GenerateRequest) -> Packed[Generation]:
        """One response per prompt. Raises StaleEngineError, DataError."""
        self._serve(request.model)
        return Packed.of(Generation, self._engine.generate(request))

    def sample(self, request: GenerateRequest) -> KeepRemote[Generation]:
        """Samples like those of `generate`, kept here; facts are those of `kept_samples`."""
        talks = self._conversations
        samples = self.generate(request) if talks is None else talks.samples(request, self.generate)
        return kept_samples(request.prompts, samples, request.first)

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """Per prompt, the log-probability of each label. Raises StaleEngineError, DataError."""
        self._serve(request.model)
        return self._engine.score_labels(request)

    # ---- weight transfer, receiving side: begin, accept ..., finish

    def weights_held(self) -> str | None:
        """The sender whose frozen tensors the engine has; "": nobody's; None: it takes the plain model, whole, every
        time."""
        return self._engine.weights_held() if isinstance(self._engine, KeepsWeights) else None

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec], terms: WeightTerms | None) -> None:
        """Open a transfer; from here until `finish_weights` nothing is served. `terms` come where `weights_held` is not
        None. Raises WeightTransferError."""
        self._distrusted = None
        if isinstance(self._engine, KeepsWeights):
            self._engine.begin_weights(version, manifest, terms)
        else:
            self._engine.begin_weights(version, manifest)

    def accept_weights(self, *parts: WeightPart) -> None:
        """One bucket: the parts of all ranks that send. Raises WeightTransferError."""
        self._engine.accept_weights(parts)

    def join_broadcast(self, meeting: Rendezvous) -> None:
        """Meet those that send by broadcast; what was before is dropped."""
        self._taker = None
        self._taker = WeightTaker(meeting, self.info.rank)

    def take_broadcast(self, plan: WeightPlan) -> None:
        """All buckets, as they are broadcast. Raises WeightTransferError; an engine that refuses a bucket takes the
        rest all the same and drops them, for the other processes wait for this one."""
        if self._taker is None:
            raise WeightTransferError("a broadcast of weights before the processes have met")
        refused: Exception | None = None
        for parts in self._taker.buckets(plan):
            try:
                if refused is None:
                    self._engine.accept_weights(parts)
            except Exception as error:
                refused = error
        if refused is not None:
            raise refused

    def map_segments(self, plan: WeightPlan, *tickets: SegmentTicket) -> None:
        """Map the segments of all ranks that send; what was before is dropped. Raises WeightTransferError."""
        self._segments = None
        self._segments = SegmentTaker(plan, tickets)

    def take_segments(self, plan: WeightPlan, version: int, *filled: None) -> None:
        """All buckets, out of segments that are `resolve`. Raises WeightTransferError."""
        if self._segments is None:
            raise WeightTransferError("a transfer by shared memory before its segments are mapped")
        for parts in self._segments.buckets(plan, version):
            self._engine.accept_weights(parts)

    def borrow_weights(self, plan: WeightPlan, version: int, ticket: SegmentTicket) -> None:
        """All buckets, out of the segment of the policy rank on the same GPU; nothing of it is kept. Raises
        WeightTransferError."""
        for parts in SegmentTaker(plan, [ticket]).buckets(plan, version):
            self._engine.accept_weights(parts)

    def finish_weights(self, version: int, probe: WeightProbe | None = None) -> str | None:
        """Close the transfer; returns `weights_held`. Raises WeightTransferError if something is missing, and where the
        engine does not say what the trainer says of `probe`: then it stays stale until a later transfer."""
        self._engine.finish_weights(version)
        if probe is not None:
            try:
                refuse_other_answers(probe, self._engine.score_labels(probe.asked), self._tolerance, version)
            except WeightTransferError as error:
                self._distrusted = str(error)
                raise
        return self.weights_held()

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Awake with `weights` among the parts, else asleep: it then holds no weights, and needs them transferred once
        it is awake again."""
        if "weights" in parts:
            self._engine.wake()
        else:
            self._engine.sleep()
        return {}

    @property
    def weight_version(self) -> int:
        """Version of the weights that it serves with; -1: none."""
        return self._engine.weight_version if self._distrusted is None else -1

    def status(self) -> dict[str, Any]:
        """Status as in `Worker`, with the engine's state and model."""
        engine = self._engine.status() if self._distrusted is None else "stale"
        return super().status() | {"engine": engine, "model": self._loaded}

    def _serve(self, model: str) -> None:
        """Be ready for a request. Raises StaleEngineError after a failed probe."""
        if self._distrusted is not None:
            raise StaleEngineError(self._distrusted)
        self._use(model)

    def _use(self, model: str) -> None:
        if model and model != self._loaded:
            self._loaded = ""
            self._engine.load(model)
            self._loaded = model
