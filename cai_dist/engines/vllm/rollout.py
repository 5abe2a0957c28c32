"""RolloutEngine on vLLM, inside this process: the same code on CPU and on CUDA.

Token ids go in and come out; vLLM holds no tokenizer. Which token is drawn follows from (request seed, row, position)
and the logits, so that a request gives the same samples on any worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel
from vllm import SamplingParams as VllmSampling

from cai_dist.config.engine import EngineConfig
from cai_dist.config.training import Dtype
from cai_dist.engines.hf.prefill_batches import refuse_empty
from cai_dist.engines.protocols.rollout import EngineStatus
from cai_dist.engines.vllm.handover import share
from cai_dist.engines.vllm.setup import MAX_TOKENS_SCORED, on_cpu, outline_of, start_vllm, stop_vllm
from cai_dist.engines.vllm.weight_backend import MAKE_ROOM
from cai_dist.errors import CaiError, DataError, StaleEngineError, WeightTransferError, one_line
from cai_dist.models.checkpoint_names import to_checkpoint
from cai_dist.models.load import refuse_non_finite_files
from cai_dist.models.tensors import TORCH_DTYPES, read_only_tensor
from cai_dist.types import Finish, GenerateRequest, Generation, LabelRequest, TensorSpec, WeightPart
from cai_dist.weight_sync.receiver import TransferLedger, refuse_other_model, whole_tensors

NAME = "vllm"


class VllmRolloutEngine:
    """A `RolloutEngine` of vLLM. With `require_sync` what `load` brings is stale: it gives
    the architecture, and the first finished transfer the weights.

    Asleep: on CUDA vLLM's own sleep of level 2; on CPU, where that frees nothing, the engine is ended and `wake` starts
    another.
    """

    def __init__(self, dtype: Dtype, config: EngineConfig, *, require_sync: bool = False) -> None:
        self.weight_version = -1
        self._dtype, self._config, self._require_sync = dtype, config, require_sync
        self._llm: Any = None
        self._source = ""
        self._status: EngineStatus = "empty"
        self._ledger: TransferLedger | None = None
        self._outline: PreTrainedModel
        self._napping = False
        """The weights are awake, keys and values are not."""
        self._updating = False
        """vLLM is between `start_weight_update` and `finish_weight_update`."""

    def load(self, path: str) -> None:
        """Load a model, see the protocol. Raises DataError also for weights that are not finite and for a model that
        vLLM cannot serve."""
        self._stop()
        self._source = path
        if not self._require_sync:
            refuse_non_finite_files(Path(path))
        self._outline = outline_of(path, self._dtype)
        self._start(random_weights=self._require_sync)
        if self._require_sync:
            self._status = "stale"
        else:
            self._status, self.weight_version = "ready", 0

    def status(self) -> EngineStatus:
        """Whether the engine may serve, see the protocol."""
        return self._status

    def sleep(self) -> None:
        """Give up memory, see the protocol."""
        if self._status in ("empty", "asleep"):
            return
        if on_cpu() or self._updating:
            self._stop()
        else:
            self._llm.sleep(level=2)
            self._napping = False
        self._status, self._ledger, self.weight_version = "asleep", None, -1

    def wake(self) -> None:
        """Take the memory again, see the protocol."""
        if self._status != "asleep":
            return
        if self._llm is None:
            self._start(random_weights=True)
        else:
            self._llm.wake_up(tags=["weights"])  # keys and values have no room while weights come
            self._napping = True
        self._status = "stale"

    # ---- serving

    def generate(self, request: GenerateRequest) -> list[Generation]:
        """One response per prompt, see the protocol. Raises DataError for an empty prompt and one that leaves no room
        for `max_new_tokens`."""
        self._require_ready("generate")
        refuse_empty(request.prompts)
        sampling = request.sampling
        self._refuse_long(request.prompts, sampling.max_new_tokens)
        params = [
            VllmSampling(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=row_seed(request.seed, request.number(row)),
                stop_token_ids=list(sampling.stop_ids),
                ignore_eos=True,  # a response ends at the ids of the request, not at the model's own
                logprobs=0,
                detokenize=False,
            )
            for row in range(len(request.prompts))
        ]
        outputs = self._run(request.prompts, params)
        return [
            self._generation(prompt, output, request) for prompt, output in zip(request.prompts, outputs, strict=True)
        ]

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """Each label's log-probability per prompt, see the protocol. Raises DataError for an empty prompt or label and
        for one that is too long."""
        self._require_ready("score_labels")
        refuse_empty(request.prompts)
        refuse_empty(request.labels)
        self._refuse_long(request.prompts, max(map(len, request.labels), default=0))
        # A tree of the labels' tokens: for every beginning, what may follow it. One position is read for each.
        followers: dict[tuple[int, ...], set[int]] = {}
        for label in request.labels:
            for i, token in enumerate(label):
                followers.setdefault(label[:i], set()).add(token)
        asked = [(head, part) for head, tokens in sorted(followers.items()) for part in _cut(sorted(tokens))]
        prompts = [prompt + head for prompt in request.prompts for head, _ in asked]
        params = [
            VllmSampling(
                max_tokens=1, temperature=0.0, logprob_token_ids=part, ignore_eos=True, detokenize=False
            )  # greedy: the log-probabilities are those of the plain softmax
            for _, part in asked
        ] * len(request.prompts)
        outputs = iter(self._run(prompts, params))
        scores = []
        for _ in request.prompts:
            table: dict[tuple[tuple[int, ...], int], float] = {}
            for head, part in asked:
                found = next(outputs).logprobs[0]
                table.update({(head, token): found[token].logprob for token in part})
            scores.append(tuple(sum(table[label[:i], t] for i, t in enumerate(label)) for label in request.labels))
        return scores

    def _run(self, prompts: Sequence[tuple[int, ...]], params: Sequence[VllmSampling]) -> list[Any]:
        """One completion per prompt, in order. Raises CaiError for an engine of several processes that has lost one; it
        is ended then."""
        if not prompts:
            return []
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            return [output.outputs[0] for output in self._llm.generate(asked, list(params), use_tqdm=False)]
        except Exception as error:
            if self._config.processes == 1:
                raise
            self._stop()
            raise CaiError(
                f"an engine of {self._config.processes} vLLM processes cannot go on, as where one of them has died "
                f"({one_line(error)}); it is ended, and the same command goes on with a new one"
            ) from error

    def _generation(self, prompt: tuple[int, ...], output: Any, request: GenerateRequest) -> Generation:
        ids = np.array(output.token_ids, np.int32)
        if request.sampling.temperature == 0:
            logprobs = np.zeros(len(ids), np.float32)  # drawn from the point mass on the likeliest token
        else:
            steps = zip(output.logprobs, output.token_ids, strict=True)
            logprobs = np.array([step[token].logprob for step, token in steps], np.float32)
        finish: Finish = "stop" if ids[-1] in request.sampling.stop_ids else "length"
        return Generation(np.array(prompt, np.int32), ids, logprobs, finish, self.weight_version, NAME)

    # ---- weights, through vLLM's own update calls

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec]) -> None:
        """Open a transfer, see the protocol. An unfinished transfer before is dropped, with the engine that it has half
        reached."""
        if self._status in ("empty", "asleep"):
            raise WeightTransferError(f"weight version {version}: the engine is {self._status} and cannot receive it")
        self._status, self._ledger, self.weight_version = "stale", None, -1
        ledger = TransferLedger(version, manifest)
        refuse_other_model(dict(self._outline.named_parameters()), ledger)
        if self._updating:
            self._stop()
            self._start(random_weights=True)
            self._status = "stale"
        self._llm.start_weight_update()
        self._ledger, self._updating = ledger, True

    def accept_weights(self, parts: Sequence[WeightPart]) -> None:
        """Copy one bucket in, see the protocol."""
        if self._ledger is None:
            raise WeightTransferError("tensors came without a transfer being open")
        ledger, self._ledger = self._ledger, None  # after an error this transfer can no longer be finished
        ledger.admit(parts)
        arrays = whole_tensors(tuple(ledger.specs.values()), parts)
        dtype = TORCH_DTYPES[self._dtype]  # the manifest's is the same: that was checked at the beginning
        tensors = {name: read_only_tensor(array, dtype) for name, array in arrays.items()}
        self._hand_over(to_checkpoint(self._outline, tensors))
        self._ledger = ledger

    def finish_weights(self, version: int) -> None:
        """Close the transfer, see the protocol."""
        if self._ledger is None:
            raise WeightTransferError(f"finish of weight version {version} without a transfer being open")
        ledger, self._ledger = self._ledger, None
        ledger.finish(version)
        self._llm.finish_weight_update(weight_version=str(version))
        self._updating = False
        if self._napping:
            self._llm.wake_up(tags=["kv_cache"])
            self._napping = False
        if not self._llm.reset_prefix_cache():  # what it holds was computed with the old weights
            raise WeightTransferError(f"weight version {version}: vLLM did not give up its prefix cache")
        self._status, self.weight_version = "ready", version

    def _hand_over(self, tensors: Mapping[str, Tensor]) -> None:
        if self._config.processes == 1:
            self._llm.update_weights({"update_info": {"tensors": tensors}})
            return
        shared, memory = share(tensors)
        self._llm.update_weights({"update_info": {"tensors": shared}})
        del memory  # every process has mapped it

    # ---- the engine below

    def _start(self, *, random_weights: bool) -> None:
        self._llm = start_vllm(self._source, self._dtype, self._config, random_weights=random_weights)
        self._llm.init_weight_transfer_engine({"init_info": {}})
        if on_cpu() and self._config.vllm.pipeline_parallel > 1:
            self._llm.collective_rpc(MAKE_ROOM)

    def _stop(self) -> None:
        llm, self._llm = self._llm, None
        self._status, self._ledger, self.weight_version = "empty", None, -1
        self._updating = self._napping = False
        if llm is not None:
            stop_vllm(llm)

    def _require_ready(self, what: str) -> None:
        if self._status == "empty":
            raise StaleEngineError(f"{what}: no model is loaded")
        if self._status != "ready":
            why = "sleeps" if self._status == "asleep" else "waits for a finished weight transfer"
            raise StaleEngineError(f"{what}: the engine {why}")

    def _refuse_long(self, prompts: Sequence[tuple[int, ...]], new: int) -> None:
        """VLLM would cut the response off without a word."""
        bound = self._llm.llm_engine.model_config.max_model_len
        longest = max(map(len, prompts), default=0)
        if longest + new > bound:
            raise DataError(
                f"a prompt of {longest} tokens with {new} new ones is longer than the {bound} that vLLM serves with "
                "this model: shorten it or raise engine.vllm.kv_cache_gb"
            )


def row_seed(seed: int, row: int) -> int:
    """The seed of one row of a request, 63 bits: far from those of other rows and requests."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest(), "big") >> 1


def _cut(tokens: list[int]) -> list[list[int]]:
    return [tokens[i : i + MAX_TOKENS_SCORED] for i in range(0, len(tokens), MAX_TOKENS_SCORED)]
