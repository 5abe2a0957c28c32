"""RolloutEngine on a plain Hugging Face model: a sampling loop of our own with a key-value cache.

Batches are left-padded; attention masks and positions come from the lengths of the prompts, so a padding id that is
also the end token hides nothing. Which token is drawn follows from (request seed, row, position) and the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cai_dist.config.training import Dtype
from cai_dist.engines.distributed import worker_device
from cai_dist.engines.kv_cache import roomy_cache, use_decode_attention
from cai_dist.engines.rollout import EngineStatus
from cai_dist.engines.sampling import draw, request_uniforms, sampling_logprobs
from cai_dist.engines.weights import WeightReceiver
from cai_dist.errors import DataError, StaleEngineError, WeightTransferError
from cai_dist.models.load import load_hf_causal
from cai_dist.types import GenerateRequest, Generation, LabelRequest, SamplingParams, TensorSpec

MAX_ROWS = 128
"""Sequences of one batch; a longer request is cut."""


class HfRolloutEngine:
    """See :class:`~cai_dist.engines.rollout.RolloutEngine`. With `require_sync` what `load` brings is stale: it gives
    the architecture, and the first finished transfer the weights."""

    def __init__(self, dtype: Dtype, *, require_sync: bool = False, max_rows: int = MAX_ROWS) -> None:
        self.device = worker_device()
        self.weight_version = -1
        self._dtype, self._require_sync, self._max_rows = dtype, require_sync, max_rows
        self._model: Any = None
        self._status: EngineStatus = "empty"
        self._receiver: WeightReceiver | None = None

    def load(self, path: str) -> None:
        """See the protocol."""
        self._status, self._model, self._receiver, self.weight_version = "empty", None, None, -1
        self._model = load_hf_causal(path, self._dtype).to(self.device).eval()
        use_decode_attention(self._model)
        if self._require_sync:
            self._status = "stale"
        else:
            self._status, self.weight_version = "ready", 0

    def status(self) -> EngineStatus:
        """See the protocol."""
        return self._status

    # ---- serving

    def generate(self, request: GenerateRequest) -> list[Generation]:
        """See the protocol. Raises DataError for an empty prompt."""
        self._require_ready("generate")
        _refuse_empty(request.prompts)
        count, sampling = len(request.prompts), request.sampling
        uniforms = request_uniforms(request.seed, count, sampling.max_new_tokens).to(self.device)
        # Prompts of like length share a batch; the output goes back to the order of the request.
        order = sorted(range(count), key=lambda i: (len(request.prompts[i]), i))
        done: dict[int, Generation] = {}
        for start in range(0, count, self._max_rows):
            rows = order[start : start + self._max_rows]
            made = self._sample([request.prompts[i] for i in rows], sampling, uniforms[rows])
            done.update(zip(rows, made, strict=True))
        return [done[i] for i in range(count)]

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """See the protocol. Raises DataError for an empty prompt or label."""
        self._require_ready("score_labels")
        _refuse_empty(request.prompts)
        _refuse_empty(request.labels)
        # The last token of a label needs no row of its own: labels that differ only there share one.
        heads = sorted({label[:-1] for label in request.labels})
        rows = [(i, head) for i in range(len(request.prompts)) for head in heads]
        rows.sort(key=lambda row: len(request.prompts[row[0]]) + len(row[1]))
        keep = max(len(label) for label in request.labels)
        tails: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for start in range(0, len(rows), self._max_rows):
            part = rows[start : start + self._max_rows]
            logits = self._tail_logits([request.prompts[i] + head for i, head in part], keep)
            tails.update(zip(part, torch.log_softmax(logits.float(), -1).unbind(0), strict=True))
        return [
            tuple(_label_logprob(tails[i, label[:-1]], label) for label in request.labels)
            for i in range(len(request.prompts))
        ]

    @torch.inference_mode()
    def _tail_logits(self, sequences: Sequence[tuple[int, ...]], keep: int) -> Tensor:
        """Logits [B, keep, V] at the last `keep` positions of each sequence (fewer if all are shorter)."""
        ids, mask, positions = self._left_padded(sequences)
        logits: Tensor = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
        ).logits
        return logits

    @torch.inference_mode()
    def _sample(
        self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, uniforms: Tensor
    ) -> list[Generation]:
        ids, mask, positions = self._left_padded(prompts)
        stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=self.device)
        cache = roomy_cache(self._model.config, sampling.max_new_tokens)
        row = torch.arange(len(prompts), device=self.device)  # which prompt each row of the batch still is
        tokens = torch.zeros(len(prompts), sampling.max_new_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(len(prompts), sampling.max_new_tokens, device=self.device)
        lengths = torch.full((len(prompts),), sampling.max_new_tokens, device=self.device)
        stopped = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        for t in range(sampling.max_new_tokens):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            distribution = sampling_logprobs(logits, sampling.temperature, sampling.top_p)
            chosen = draw(distribution, uniforms[row, t])
            tokens[row, t] = chosen
            logprobs[row, t] = distribution.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            ended = torch.isin(chosen, stops)
            stopped[row[ended]] = True
            lengths[row[ended]] = t + 1
            going = (~ended).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) < len(row):  # finished rows leave the batch and its cache
                cache.batch_select_indices(going)
                row, chosen, mask, positions = row[going], chosen[going], mask[going], positions[going]
            ids = chosen.unsqueeze(-1)
            mask = torch.cat([mask, mask.new_ones(len(row), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return self._generations(prompts, tokens, logprobs, lengths, stopped)

    def _generations(
        self, prompts: Sequence[tuple[int, ...]], tokens: Tensor, logprobs: Tensor, lengths: Tensor, stopped: Tensor
    ) -> list[Generation]:
        made = zip(prompts, tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
        return [
            Generation(prompt, tuple(ids[:n]), tuple(scores[:n]), "stop" if ended else "length", self.weight_version)
            for prompt, ids, scores, n, ended in made
        ]

    def _left_padded(self, sequences: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and positions, long [B, T] each; every sequence ends in the last column."""
        width = max(len(sequence) for sequence in sequences)
        ids = torch.tensor([(0,) * (width - len(s)) + tuple(s) for s in sequences], device=self.device)
        lengths = torch.tensor([len(s) for s in sequences], device=self.device)
        positions = torch.arange(width, device=self.device) - (width - lengths).unsqueeze(-1)
        return ids, (positions >= 0).long(), positions.clamp(min=0)

    def _require_ready(self, what: str) -> None:
        if self._status == "empty":
            raise StaleEngineError(f"{what}: no model is loaded")
        if self._status == "stale":
            raise StaleEngineError(f"{what}: the engine waits for a finished weight transfer")

    # ---- weights

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec]) -> None:
        """See the protocol. An unfinished transfer before is dropped."""
        if self._model is None:
            raise WeightTransferError(f"weight version {version}: no model is loaded to receive it")
        self._status, self._receiver, self.weight_version = "stale", None, -1
        parameters: dict[str, nn.Parameter] = dict(self._model.named_parameters())
        self._receiver = WeightReceiver(parameters, version, manifest)

    def accept_weights(self, bucket: Mapping[str, np.ndarray]) -> None:
        """See the protocol."""
        if self._receiver is None:
            raise WeightTransferError("tensors came without a transfer being open")
        try:
            self._receiver.accept(bucket)
        except WeightTransferError:
            self._receiver = None  # this transfer can no longer be finished
            raise

    def finish_weights(self, version: int) -> None:
        """See the protocol."""
        if self._receiver is None:
            raise WeightTransferError(f"finish of weight version {version} without a transfer being open")
        receiver, self._receiver = self._receiver, None
        receiver.finish(version)
        self._status, self.weight_version = "ready", version


def _label_logprob(tail: Tensor, label: tuple[int, ...]) -> float:
    """Summed log-probability of `label`; row [-n:] of `tail` [keep, V] predict its n tokens."""
    columns = torch.tensor(label, device=tail.device).unsqueeze(-1)
    return float(tail[-len(label) :].gather(-1, columns).double().sum())


def _refuse_empty(sequences: Sequence[tuple[int, ...]]) -> None:
    if any(len(sequence) == 0 for sequence in sequences):
        raise DataError("a prompt or label has no tokens; each needs at least one")
