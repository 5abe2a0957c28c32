"""What has been sampled so far for one request, prompt by prompt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cai_dist.data.device import brought_together, moved_together
from cai_dist.engines.hf.sampling import draw, request_uniforms, sampling_logprobs
from cai_dist.types import GenerateRequest, Generation


class Samples:
    """Draws the tokens of a request and keeps them. A token follows from (seed, prompt, position) and the logits.

    Index `spare` is that of a prompt that does not exist: rows of a batch that are free draw for it.
    """

    def __init__(self, request: GenerateRequest, device: torch.device) -> None:
        sampling, count = request.sampling, len(request.prompts)
        self.spare = count
        self._prompts, self._sampling = request.prompts, sampling
        uniforms = _uniforms(request)
        self._uniforms, self._stops = moved_together(
            [
                torch.cat([uniforms, uniforms.new_zeros(1, sampling.max_new_tokens)]),
                torch.tensor(sampling.stop_ids, dtype=torch.long),
            ],
            device,
        )
        shape = count + 1, sampling.max_new_tokens
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(count + 1, dtype=torch.long, device=device)
        self._stopped = torch.zeros(count + 1, dtype=torch.bool, device=device)

    def draw(self, logits: Tensor, prompts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Draw token `positions` [B] of the responses to `prompts` [B] (indices) from logits [B, V]; returns the tokens
        [B] and which responses end with them [B]."""
        distribution = sampling_logprobs(logits, self._sampling.temperature, self._sampling.top_p)
        chosen = draw(distribution, self._uniforms[prompts, positions])
        self._tokens[prompts, positions] = chosen
        self._logprobs[prompts, positions] = distribution.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        self._lengths[prompts] = positions + 1
        stopped = (chosen.unsqueeze(-1) == self._stops).any(-1)
        self._stopped[prompts] = stopped
        return chosen, stopped | (positions + 1 == self._sampling.max_new_tokens)

    def generations(self, weight_version: int) -> list[Generation]:
        """The responses in the order of the request; all must have ended."""
        columns = [column[: self.spare] for column in (self._tokens, self._lengths, self._stopped.long())]
        tokens, lengths, marks = brought_together(columns)
        ids = tokens.view(self.spare, self._sampling.max_new_tokens).int().numpy()
        scores = self._logprobs[: self.spare].cpu().numpy()
        ends = zip(lengths.tolist(), marks.tolist(), strict=True)
        return [
            Generation(
                np.array(prompt, np.int32),
                ids[row, :n],
                scores[row, :n],
                "stop" if stopped else "length",
                weight_version,
            )
            for row, (prompt, (n, stopped)) in enumerate(zip(self._prompts, ends, strict=True))
        ]


def _uniforms(request: GenerateRequest) -> Tensor:
    """[prompts, max_new_tokens], the row of each prompt by its number."""
    count, tokens = len(request.prompts), request.sampling.max_new_tokens
    if not request.numbers:
        return request_uniforms(request.seed, count, tokens, request.first)
    lowest = min(request.numbers)
    rows = request_uniforms(request.seed, max(request.numbers) + 1 - lowest, tokens, lowest)
    return rows[[number - lowest for number in request.numbers]]
