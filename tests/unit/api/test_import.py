"""`import cai_dist` is light and offers what `__all__` says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cai_dist
from cai_dist import Constitution
from cai_dist.constitution import load_constitution

HEAVY = ("torch", "transformers", "ray", "deepspeed", "vllm", "pydantic", "numpy", "pyarrow")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_import_is_quick_and_brings_nothing_heavy() -> None:
    code = "import sys, time; t = time.process_time(); import cai_dist; print(time.process_time() - t < 0.2)"
    out = run(f"{code}; dir(cai_dist); print([m for m in {HEAVY} if m in sys.modules])")
    assert out.split("\n")[:2] == ["True", "[]"]


@pytest.mark.slow
def test_the_models_need_no_ray() -> None:
    names = "ChatModel, FeedbackModel, PreferenceModel, critique_and_revise, run_pipeline"
    absent = ("ray", "deepspeed", "vllm", "wandb")
    out = run(f"import sys; from cai_dist import {names}; print([m for m in {absent} if m in sys.modules])")
    assert out.strip() == "[]"


def test_reading_runs_and_constitutions_needs_no_torch() -> None:
    code = "import sys; from cai_dist import Constitution, ConfigError, RunConfig, Turn, load_run"
    heavy = ("torch", "transformers", "ray")
    assert run(f"{code}; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_every_public_name_is_there_and_is_what_its_module_calls_so() -> None:
    assert cai_dist.__all__ == sorted(cai_dist.__all__, key=lambda name: (name.islower(), name))
    assert set(cai_dist.__all__) == set(cai_dist._MODULE_OF)
    for name in cai_dist.__all__:
        found = getattr(cai_dist, name)
        assert found.__name__ == name and found.__doc__, name
        assert found.__module__ == cai_dist._MODULE_OF[name], name
    assert set(cai_dist.__all__) <= set(dir(cai_dist))


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'FeedbakModel'; its names are .*load_run"):
        cai_dist.FeedbakModel  # noqa: B018
    with pytest.raises(ImportError):
        from cai_dist import nothing  # noqa: F401


def test_a_constitution_is_loaded_by_name_or_path(tmp_path: Path) -> None:
    micro = Constitution.load("micro")
    assert isinstance(micro, Constitution) and micro.sha256 == load_constitution("micro").sha256
    source = Path(cai_dist.__file__).parent / "constitution" / "default.yaml"
    assert Constitution.load(source) == Constitution.load("default")
    with pytest.raises(cai_dist.ConfigError, match="no such file or folder"):
        Constitution.load(tmp_path / "none.yaml")
