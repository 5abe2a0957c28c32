"""Whether the Hugging Face engine makes of prompts in batches what transformers makes of each alone; tried at loading.

The engine's own decoder runs on four short prompts with answers that are given: left padding, a cache that begins,
grows, loses sequences and takes new ones. Every logit that it sees, and every label's log-probability, must be that of
a pass over the whole sequence with `eager` attention and without a cache.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.hf.continuous_batching import SlotDecoder
from cai_dist.engines.hf.kv_cache import use_decode_attention
from cai_dist.engines.hf.label_logprobs import label_logprobs
from cai_dist.engines.hf.samples import Samples
from cai_dist.errors import ConfigError
from cai_dist.models.attention import eagerly
from cai_dist.models.compare import close, one_line, probe_ids, runs_plainly
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams

Ids = tuple[int, ...]

_PROMPTS, _ANSWERS = (5, 5, 3, 1), (3, 1, 3, 2)
"""Tokens of the prompts and of their answers: the second ends at once, and while the first goes on another comes in."""
_ROWS = 2


def probe_rollout(hf: Any) -> None:
    """Try whether the Hugging Face engine can serve a causal language model; afterwards `hf` has its attention.

    Raises: ConfigError, in one line, for a model that it would serve wrong.
    """
    prompts, answers = _sequences(hf)
    with eagerly(hf), runs_plainly(hf):
        expected = [_alone(hf, prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    try:
        use_decode_attention(hf)
        wrong = _limited_steps(hf) or _difference(hf, prompts, answers, expected)
    except Exception as error:  # an architecture may refuse a cache or an argument in its own way
        wrong = one_line(error)
    if wrong:
        raise ConfigError(
            f"engine.backend=hf: {type(hf).__name__} cannot be served ({wrong}); set engine.backend=vllm "
            "or take another model"
        )


def _limited_steps(hf: Any) -> str:
    """What few tokens may not show: transformers limits the time steps of a state-space layer in a pass over a whole
    sequence, but not in the step of one token with a cache (seen in 5.19: Nemotron-H's lower limit)."""
    limits = (getattr(module, "time_step_limit", None) for module in hf.modules())
    limited = any(limit is not None and (limit[0] > 0 or limit[1] < float("inf")) for limit in limits)
    return "transformers limits its time steps without a cache, but not with one" if limited else ""


def _sequences(hf: Any) -> tuple[tuple[Ids, ...], tuple[Ids, ...]]:
    """Prompts and answers, of different ids as far as the vocabulary goes."""
    ids = iter(probe_ids(hf, sum(_PROMPTS + _ANSWERS)))
    made = [tuple(islice(ids, length)) for length in _PROMPTS + _ANSWERS]
    return tuple(made[: len(_PROMPTS)]), tuple(made[len(_PROMPTS) :])


@torch.inference_mode()
def _alone(hf: Any, ids: Ids) -> Tensor:
    """Logits [T, V] of a sequence, by one pass over it alone."""
    logits: Tensor = hf(input_ids=torch.tensor([ids], device=hf.device), use_cache=False).logits[0]
    return logits


def _difference(hf: Any, prompts: tuple[Ids, ...], answers: tuple[Ids, ...], expected: list[Tensor]) -> str:
    """What comes out otherwise than `expected`, logits [T, V] of each prompt and answer; empty: nothing."""
    config = EngineConfig(max_rows=_ROWS)
    request = GenerateRequest(prompts, SamplingParams(max(_ANSWERS), 1.0, 1.0, ()), 0)
    script = _Script(request, hf.device, answers)
    SlotDecoder(hf, config, request, script).run()
    labels = tuple(answer[:2] for answer in answers if len(answer) > 1)
    scores = label_logprobs(hf, EngineConfig(max_rows=len(prompts)), LabelRequest(prompts, labels))
    label = 0
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        right = expected[row][len(prompt) - 1 : -1]
        if not close(hf, torch.stack([script.seen[row, t] for t in range(len(answer))]), right):
            return "a prompt in a batch has other results than alone"
        if len(answer) > 1:
            table = right[:2].float().log_softmax(-1)
            score = sum(table[t, answer[t]] for t in range(2))
            wanted = torch.as_tensor(score).to(right)
            if not close(hf, torch.tensor(scores[row][label]).to(right), wanted, right.abs().max()):
                return "a label after a prompt in a batch has another probability than alone"
            label += 1
    return ""


class _Script(Samples):
    """Samples that are given, and the logits that they would have been drawn from, by prompt and position."""

    def __init__(self, request: GenerateRequest, device: torch.device, answers: tuple[Ids, ...]) -> None:
        super().__init__(request, device)
        self._answers = answers
        self.seen: dict[tuple[int, int], Tensor] = {}

    def draw(self, logits: Tensor, prompts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `Samples.draw`, without a draw."""
        chosen, ended = [], []
        for row, (prompt, position) in enumerate(zip(prompts.tolist(), positions.tolist(), strict=True)):
            answer = self._answers[prompt] if prompt != self.spare else (0,)
            chosen.append(answer[position])
            ended.append(position + 1 == len(answer))
            self.seen[prompt, position] = logits[row]
        return torch.tensor(chosen, device=logits.device), torch.tensor(ended, device=logits.device)
