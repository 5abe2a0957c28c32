"""From the run file to the engine, where vLLM is not installed."""

from __future__ import annotations

import pytest

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import ConfigError


def test_an_engine_is_built_or_its_package_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_rollout_engine(EngineConfig(), "fp32").status() == "empty"
    monkeypatch.setattr("cai_dist.config.engine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="engine.backend=vllm: the package vllm is not installed") as caught:
        build_rollout_engine(EngineConfig(backend="vllm"), "fp32")
    assert "\n" not in str(caught.value)
