"""RolloutEngine on a plain Hugging Face model, with a sampling loop of our own and a key-value cache.

Prompts are left-padded; attention masks and positions come from lengths, so a padding id that is also the end token
hides nothing. Which token is drawn follows from (request seed, prompt of the request, position) and the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai_dist.config.engine import EngineConfig
from cai_dist.config.training import Dtype
from cai_dist.distributed.process_group import worker_device
from cai_dist.engines.hf.continuous_batching import SlotDecoder
from cai_dist.engines.hf.label_logprobs import label_logprobs
from cai_dist.engines.hf.memory import Shapes, release_parameters, take_parameters
from cai_dist.engines.hf.prefill_batches import refuse_empty
from cai_dist.engines.hf.probe import probe_rollout
from cai_dist.engines.hf.samples import Samples
from cai_dist.engines.protocols.rollout import EngineStatus
from cai_dist.errors import StaleEngineError, WeightTransferError
from cai_dist.models.load import load_hf_causal
from cai_dist.types import GenerateRequest, Generation, LabelRequest, TensorSpec, WeightPart, WeightTerms
from cai_dist.weight_sync.receiver import HeldWeights, WeightReceiver


class HfRolloutEngine:
    """A `RolloutEngine` of transformers. With `require_sync` what `load` brings is stale: it gives
    the architecture, and the first finished transfer the weights."""

    def __init__(self, dtype: Dtype, config: EngineConfig, *, require_sync: bool = False) -> None:
        self.device = worker_device()
        self.weight_version = -1
        self._dtype, self._config, self._require_sync = dtype, config, require_sync
        self._model: Any = None
        self._shapes: Shapes = {}
        self._status: EngineStatus = "empty"
        self._receiver: WeightReceiver | None = None
        self._held: HeldWeights | None = None

    def load(self, path: str) -> None:
        """Load a model, see the protocol. Raises ConfigError for a model that the engine would serve wrong."""
        self._status, self._model, self._receiver, self.weight_version = "empty", None, None, -1
        self._held = None
        self._model = load_hf_causal(path, self._dtype).to(self.device).eval()
        probe_rollout(self._model)
        if self._require_sync:
            self._status = "stale"
        else:
            self._status, self.weight_version = "ready", 0

    def status(self) -> EngineStatus:
        """Whether the engine may serve, see the protocol."""
        return self._status

    # ---- serving

    def generate(self, request: GenerateRequest) -> list[Generation]:
        """One response per prompt, see the protocol. Raises DataError for an empty prompt."""
        self._require_ready("generate")
        refuse_empty(request.prompts)
        samples = Samples(request, self.device)
        SlotDecoder(self._model, self._config, request, samples).run()
        return samples.generations(self.weight_version)

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """Each label's log-probability per prompt, see the protocol. Raises DataError for an empty prompt or label."""
        self._require_ready("score_labels")
        refuse_empty(request.prompts)
        refuse_empty(request.labels)
        return label_logprobs(self._model, self._config, request)

    def _require_ready(self, what: str) -> None:
        if self._status == "empty":
            raise StaleEngineError(f"{what}: no model is loaded")
        if self._status == "asleep":
            raise StaleEngineError(f"{what}: the engine sleeps; wake it and transfer weights first")
        if self._status == "stale":
            raise StaleEngineError(f"{what}: the engine waits for a finished weight transfer")

    # ---- memory

    def sleep(self) -> None:
        """Give up memory, see the protocol: the architecture and the buffers stay (no transfer brings these),
        parameters hold nothing. An engine without a model stays empty."""
        if self._status in ("empty", "asleep"):
            return
        self._status, self._receiver, self._held, self.weight_version = "asleep", None, None, -1
        self._shapes = release_parameters(self._model)

    def wake(self) -> None:
        """Take the memory again, see the protocol; parameters hold arbitrary numbers until weights have come."""
        if self._status == "asleep":
            take_parameters(self._model, self._shapes)
            self._status = "stale"

    # ---- weights

    def weights_held(self) -> str:
        """The sender whose frozen tensors the engine has, see `KeepsWeights`."""
        return self._held.sender if self._held is not None and self._status == "ready" else ""

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec], terms: WeightTerms | None = None) -> None:
        """Open a transfer, see the protocol. An unfinished transfer before is dropped."""
        if self._model is None:
            raise WeightTransferError(f"weight version {version}: no model is loaded to receive it")
        if self._status == "asleep":
            raise WeightTransferError(f"weight version {version}: the engine sleeps; wake it first")
        self._status, self._receiver, self.weight_version = "stale", None, -1
        held, self._held = self._held, None  # of no use any more where this transfer is not finished
        self._receiver = WeightReceiver(dict(self._model.named_parameters()), version, manifest, terms, held)

    def accept_weights(self, parts: Sequence[WeightPart]) -> None:
        """Copy one bucket in, see the protocol."""
        if self._receiver is None:
            raise WeightTransferError("tensors came without a transfer being open")
        try:
            self._receiver.accept(parts)
        except BaseException:  # also a copy that fails half-way: this transfer can no longer be finished
            self._receiver = None
            raise

    def finish_weights(self, version: int) -> None:
        """Close the transfer, see the protocol."""
        if self._receiver is None:
            raise WeightTransferError(f"finish of weight version {version} without a transfer being open")
        receiver, self._receiver = self._receiver, None
        self._held = receiver.finish(version)
        self._status, self.weight_version = "ready", version
