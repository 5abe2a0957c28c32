"""A rollout engine of one's own: the built-in one, a few prompts at a time.

An engine for another library implements `cai_dist.protocols.RolloutEngine` whole, and is made in the same way.

engine: {backend: "my_extensions.rollout_engine:FewAtATime"}
"""

from __future__ import annotations

from dataclasses import replace

from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.types import GenerateRequest, Generation

SIZE = 4


class FewAtATime(HfRolloutEngine):
    """At most `SIZE` prompts are decoded together. Made as FewAtATime(dtype, config, require_sync=…) in each worker."""

    def generate(self, request: GenerateRequest) -> list[Generation]:
        samples: list[Generation] = []
        for start in range(0, len(request.prompts), SIZE):
            samples += super().generate(request.part(start, start + SIZE))
        return [replace(sample, engine="few") for sample in samples]
