"""Continuous batching: prompts take the place of responses that have ended, in one running key-value cache.

All sequences end in the last column of the cache, so that one token more is one column more for all of them. A
newcomer's prompt is computed in a left-padded batch of its own and copied into the columns before the last one; columns
that no sequence reaches any more are dropped from the front. Prompts come longest first: a newcomer is never longer
than the sequences that run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cai_dist.config.engine import EngineConfig
from cai_dist.data.device import moved_together
from cai_dist.engines.hf.forward import forward_arguments
from cai_dist.engines.hf.kv_cache import keep_sequences, roomy_cache, roomy_layers
from cai_dist.engines.hf.prefill_batches import PREFILL_TOKENS, cut_by_cost, left_padded, longest_first
from cai_dist.engines.hf.samples import Samples
from cai_dist.types import GenerateRequest

ROOM = 128
"""Columns that the cache is made longer than it must be, so that it is not moved at every token."""
LOOK_EVERY = {"cuda": 8}
"""Tokens after which the host looks which responses have ended, by kind of device (others: 1). It waits for the device
each time, and a row that has ended costs less than that until it is free."""
REFILL_SHARE = 8
"""Free places are resolve, or given up where no prompt is left, once they are one in so many."""


class SlotDecoder:
    """Answers one request; `run` once. At most `config.max_rows` sequences at a time, and rows x columns of the cache
    at most `config.max_tokens` (a single sequence may be longer)."""

    def __init__(self, model: Any, config: EngineConfig, request: GenerateRequest, samples: Samples) -> None:
        self._model, self._config, self._samples = model, config, samples
        self._device: torch.device = model.device
        self._prompts, self._new = request.prompts, request.sampling.max_new_tokens
        self._room = min(ROOM, self._new)
        self._queue = longest_first(request.prompts)
        self._cache = roomy_cache(model.config, self._room)
        self._refillable = bool(roomy_layers(self._cache))
        self._width = 0  # columns of the cache
        self._look_every, self._steps = LOOK_EVERY.get(self._device.type, 1), 0
        # Of each row, as the host knows it: the prompt (None: it is free) and columns in use.
        self._slots: list[int | None] = []
        self._used: list[int] = []
        # Of each row, on the device: the prompt (`spare`: it is free), tokens drawn, the last one, columns in use.
        none = torch.zeros(0, dtype=torch.long, device=self._device)
        self._prompt, self._drawn, self._token, self._length = none, none, none, none

    @torch.inference_mode()
    def run(self) -> None:
        """Sample until every prompt has its response."""
        while self._queue or self._running:
            admitted = self._admissible()
            if admitted:
                self._admit(self._queue[:admitted])
                del self._queue[:admitted]
            elif (not self._queue or not self._refillable) and self._worth_while(
                len(self._slots) - self._running, len(self._slots)
            ):
                self._shrink()
            if self._running:
                self._step()

    @property
    def _running(self) -> int:
        return sum(slot is not None for slot in self._slots)

    # ---- who comes in

    def _admissible(self) -> int:
        """How many prompts of the queue to take in now; 0: it is not worth while yet."""
        running = self._running
        if not self._queue or (running and not self._refillable):
            return 0
        longest = max(len(self._prompts[i]) for i in (self._queue[0], *self._slots) if i is not None)
        allowed = self._config.max_rows
        if self._config.max_tokens:
            allowed = min(allowed, max(1, self._config.max_tokens // (longest + self._new + self._room)))
        free = min(allowed - running, len(self._queue))
        return free if not running or self._worth_while(free, min(allowed, len(self._queue))) else 0

    def _worth_while(self, free: int, places: int) -> bool:
        return free * REFILL_SHARE >= places and free > 0

    def _admit(self, newcomers: list[int]) -> None:
        """Compute the prompts and draw the first token of each; those whose response goes on get a row."""
        if not self._running:
            self._clear()
        lengths = [len(self._prompts[i]) for i in newcomers]
        tokens = min(PREFILL_TOKENS, self._config.max_tokens or PREFILL_TOKENS)
        groups = cut_by_cost(lengths, len(newcomers), tokens) if self._refillable else [slice(0, len(newcomers))]
        for group in groups:
            self._prefill(newcomers[group], len(newcomers), lengths[0])
        self._drop_columns()

    def _prefill(self, prompts: list[int], height: int, width: int) -> None:
        """`height`, `width`: of the cache, where this is the first batch in it."""
        ids, mask, positions = left_padded([self._prompts[i] for i in prompts], self._device)
        cache = roomy_cache(self._model.config, 0 if self._refillable else self._room)
        logits = self._forward(ids, mask, positions, cache)
        (index,) = moved_together([torch.tensor(prompts)], self._device)
        tokens, ended = self._samples.draw(logits, index, torch.zeros_like(index))
        where = [place for place, gone in enumerate(ended.tolist()) if not gone]
        if not where:
            return
        rows = self._take_rows([prompts[i] for i in where], height if self._refillable else 0)
        going, target = moved_together([torch.tensor(where), torch.tensor(rows)], self._device)
        if self._refillable:
            for layer, new in zip(roomy_layers(self._cache), roomy_layers(cache), strict=True):
                layer.place(*new.sequences(going), target, len(self._slots), width)
            self._width = self._width or width
        else:
            keep_sequences(cache, going)
            self._cache, self._width = cache, ids.shape[1]
        self._prompt[target], self._drawn[target] = index[going], 1
        self._token[target], self._length[target] = tokens[going], mask[going].sum(-1)

    def _take_rows(self, prompts: list[int], height: int) -> list[int]:
        """Free rows for these prompts; there are `height` rows afterwards, or as many as they need."""
        missing = max(height - len(self._slots), len(prompts) - (len(self._slots) - self._running), 0)
        self._slots += [None] * missing
        self._used += [0] * missing
        spare = torch.full((missing,), self._samples.spare, device=self._device)
        self._prompt = torch.cat([self._prompt, spare])
        self._drawn, self._token, self._length = (
            torch.cat([state, torch.zeros_like(spare)]) for state in (self._drawn, self._token, self._length)
        )
        rows = [row for row, slot in enumerate(self._slots) if slot is None][: len(prompts)]
        for row, prompt in zip(rows, prompts, strict=True):
            self._slots[row], self._used[row] = prompt, len(self._prompts[prompt])
        return rows

    # ---- one token more

    def _step(self) -> None:
        """Every running sequence gets its next token; a free row goes through the motions with one masked token."""
        columns = torch.arange(self._width + 1, device=self._device)
        mask = (columns >= (self._width - self._length).unsqueeze(-1)).long()
        logits = self._forward(self._token.unsqueeze(-1), mask, self._length.unsqueeze(-1), self._cache)
        self._width += 1
        self._token, ended = self._samples.draw(logits, self._prompt, self._drawn)
        going = (self._prompt != self._samples.spare) & ~ended
        self._prompt = self._prompt.where(going, self._samples.spare)
        self._length, self._drawn = (self._length + 1) * going, (self._drawn + 1) * going
        self._used = [used + (slot is not None) for used, slot in zip(self._used, self._slots, strict=True)]
        self._steps += 1
        if self._steps % self._look_every == 0 or self._full:
            self._look()

    @property
    def _full(self) -> bool:
        """Whether a response has as many tokens as it may have: then it has ended, whatever they are."""
        rows = zip(self._slots, self._used, strict=True)
        return any(slot is not None and used >= len(self._prompts[slot]) + self._new - 1 for slot, used in rows)

    def _look(self) -> None:
        """See which rows have become free: the host waits for the device."""
        free = [prompt == self._samples.spare for prompt in self._prompt.tolist()]
        if all(slot is None for slot, gone in zip(self._slots, free, strict=True) if gone):
            return
        self._slots = [None if gone else slot for slot, gone in zip(self._slots, free, strict=True)]
        self._drop_columns()

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [B, V] after the last column."""
        given = forward_arguments(self._model, ids, mask, positions, cache)
        logits: Tensor = self._model(**given, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]

    # ---- who goes

    def _clear(self) -> None:
        """An empty cache without rows."""
        self._cache, self._width = roomy_cache(self._model.config, self._room), 0
        self._slots, self._used = [], []
        self._prompt, self._drawn, self._token, self._length = (
            state[:0] for state in (self._prompt, self._drawn, self._token, self._length)
        )

    def _shrink(self) -> None:
        """Free rows leave the batch and its cache."""
        kept = [row for row, slot in enumerate(self._slots) if slot is not None]
        self._slots, self._used = [self._slots[row] for row in kept], [self._used[row] for row in kept]
        (rows,) = moved_together([torch.tensor(kept, dtype=torch.long)], self._device)
        self._prompt, self._drawn, self._token, self._length = (
            state[rows] for state in (self._prompt, self._drawn, self._token, self._length)
        )
        keep_sequences(self._cache, rows)

    def _drop_columns(self) -> None:
        """Forget the columns before the longest sequence."""
        if not self._refillable or not self._running:
            return
        longest = max(used for used, slot in zip(self._used, self._slots, strict=True) if slot is not None)
        for layer in roomy_layers(self._cache):
            layer.drop_columns(self._width - longest)
        self._width = longest
