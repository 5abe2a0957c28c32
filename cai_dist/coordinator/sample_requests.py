"""What the rollout workers are asked for, and whether what they gave is that."""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt, choose
from cai_dist.errors import CaiError, StaleEngineError
from cai_dist.types import SampleRef, SamplingParams


def asked_for(prompts: Sequence[TokenizedPrompt], config: PpoConfig, seed: int, batch: int) -> list[TokenizedPrompt]:
    """The prompts of a batch (0-based; with most schedules batch k is that of iteration k), one entry a sample: those
    of one prompt side by side. Raises DataError if there is no prompt of a wanted kind."""
    chosen = choose(prompts, config.prompts_per_iteration, config.helpful_fraction, seed, batch)
    return [prompt for prompt in chosen for _ in range(config.samples_per_prompt)]


def sampling_params(config: PpoConfig, stop_ids: tuple[int, ...], limit: int | None = None) -> SamplingParams:
    """How to sample; `limit` new tokens instead of `ppo.sampling.max_new_tokens`."""
    return SamplingParams(
        max_new_tokens=limit or config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        stop_ids=stop_ids,
    )


def check_samples(
    samples: Sequence[SampleRef],
    prompts: Sequence[tuple[int, ...]],
    policy: int,
    staleness: int = 0,
    first: int = 0,
) -> None:
    """Check that samples are as many as were asked for, and recent enough. That their tokens are in order has been
    checked where they are (`experience.samples.kept_samples`).

    Args:
        prompts: token ids of the prompt of each sample.
        policy: version of the policy's weights.
        staleness: how many versions behind it the weights of a token may be.
        first: number of the first sample, for messages.

    Raises: CaiError (of other prompts), StaleEngineError (of other weights).
    """
    if [sample.prompt_tokens for sample in samples] != [len(prompt) for prompt in prompts]:
        raise CaiError("rollout: the samples do not belong to the prompts that were sent, or not in their order")
    for number, sample in enumerate(samples, first):
        for version in (sample.oldest_version, sample.weight_version):
            if not policy - staleness <= version <= policy:
                behind = f", and may be {staleness} ahead" if staleness else ""
                raise StaleEngineError(
                    f"rollout: sample {number} comes from weight version {version}, the policy is at {policy}{behind}"
                )
