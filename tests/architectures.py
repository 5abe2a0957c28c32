"""Tiny random models of many architectures, from transformers' own configurations, with their default dropout."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

VOCAB = 64
_IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
_BASE = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_GROUPED = _BASE | {"num_key_value_heads": 2}
_GPT2 = _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
_MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}


@dataclass(frozen=True)
class Architecture:
    """A row of the table: its name in print, the prefix of its configuration class and what the class is given."""

    name: str
    config_class: str
    settings: dict[str, Any] = field(repr=False)
    attention: str = "eager"
    """Transformers' attention that it is compared with."""

    def config(self) -> PreTrainedConfig:
        """Its configuration, a new one each time."""
        made: PreTrainedConfig = getattr(transformers, f"{self.config_class}Config")(**copy.deepcopy(self.settings))
        return made

    def network(self, auto: Any = AutoModelForCausalLM) -> Any:
        """A random model in fp32, the same each time; a sequence classifier has one label."""
        config = self.config()
        config.num_labels = 1
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():  # vectors that begin at 0 or 1 (biases, gains, sinks) would hide that they are dropped
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model.eval()


def _row(name: str, config_class: str, base: dict[str, Any] = _GROUPED, **extra: Any) -> Architecture:
    return Architecture(name, config_class, base | extra)


_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_ALIBI = _BASE | {"alibi": True, "multi_query": False, "new_decoder_architecture": False}

ARCHITECTURES = (
    _row("Llama 3", "Llama"),
    _row(
        "Llama 4 (text)",
        "Llama4Text",
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=8,
    ),
    _row("Mistral", "Mistral", sliding_window=8),
    _row("Mixtral", "Mixtral", num_local_experts=4, sliding_window=None),
    _row("Qwen2, Qwen2.5", "Qwen2"),
    _row("Qwen2-MoE", "Qwen2Moe", shared_expert_intermediate_size=32, **_MOE),
    _row("Qwen3", "Qwen3", head_dim=8),
    _row("Qwen3-MoE", "Qwen3Moe", head_dim=8, **_MOE),
    _row("Qwen3.5", "Qwen3_5Text", layer_types=["linear_attention", "full_attention"], **_LINEAR),
    _row(
        "Qwen3-Next",
        "Qwen3Next",
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=16,
        **_LINEAR,
        **_MOE,
    ),
    _row("Gemma", "Gemma", head_dim=8),
    _row(
        "Gemma 2",
        "Gemma2",
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    _row(
        "Gemma 3 (text)",
        "Gemma3Text",
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        final_logit_softcapping=2.0,
    ),
    _row("Phi 2", "Phi"),
    _row("Phi 3, Phi 4", "Phi3"),
    _row("GPT-2", "GPT2", _GPT2),
    _row("GPT-BigCode", "GPTBigCode", _GPT2),
    _row(
        "GPT-Neo", "GPTNeo", _BASE, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    ),
    _row("GPT-NeoX", "GPTNeoX", _BASE),
    _row("GPT-J", "GPTJ", _GPT2, rotary_dim=4),
    _row("CodeGen", "CodeGen", _GPT2, rotary_dim=4),
    _row("OPT", "OPT", _BASE, ffn_dim=48, word_embed_proj_dim=32),
    _row("Falcon (rotary)", "Falcon", _BASE, num_kv_heads=2, new_decoder_architecture=True),
    # With `eager` transformers 5.19 adds the bias twice: it is in the mask already.
    Architecture("Falcon (ALiBi)", "Falcon", _ALIBI, attention="sdpa"),
    _row("Bloom", "Bloom", _IDS, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    _row("MPT", "Mpt", _IDS, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, initializer_range=0.2),
    _row("Cohere", "Cohere", logit_scale=0.5),
    _row("Cohere 2", "Cohere2", logit_scale=0.5, sliding_window=8),
    _row("Granite", "Granite", logits_scaling=3.0, attention_multiplier=0.5),
    _row(
        "Granite 4 (hybrid)",
        "GraniteMoeHybrid",
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        shared_intermediate_size=32,
        num_local_experts=0,
        position_embedding_type="rope",
    ),
    _row("OLMo 2", "Olmo2"),
    _row("OLMo 3", "Olmo3", sliding_window=8),
    _row("OLMoE", "Olmoe", num_experts=4, num_experts_per_tok=2),
    _row(
        "gpt-oss",
        "GptOss",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        rope_parameters=None,
    ),
    _row(
        "DeepSeek V3",
        "DeepseekV3",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=16,
        rope_interleave=True,
    ),
    _row("GLM-4", "Glm4", head_dim=8),
    _row("StarCoder 2", "Starcoder2"),
    _row("StableLM", "StableLm"),
    _row("Nemotron", "Nemotron"),
    _row("SmolLM 3", "SmolLM3"),
    _row("EXAONE 4", "Exaone4", sliding_window=8),
    _row("ERNIE 4.5", "Ernie4_5"),
    _row("ModernBERT decoder", "ModernBertDecoder", _BASE, local_attention=8),
    _row("LFM2", "Lfm2", layer_types=["conv", "full_attention"]),
    _row(
        "Jamba",
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    _row(
        "Falcon-H1",
        "FalconH1",
        mamba_d_ssm=32,
        lm_head_multiplier=0.5,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    _row("Mamba", "Mamba", _BASE, state_size=8, time_step_rank=4),
    _row("Mamba 2", "Mamba2", _BASE, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    _row(
        "RecurrentGemma",
        "RecurrentGemma",
        head_dim=8,
        lru_width=32,
        attention_window_size=8,
        logits_soft_cap=2.0,
        block_types=["recurrent", "attention"],
    ),
    _row(
        "RWKV",
        "Rwkv",
        _IDS,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        intermediate_size=48,
        context_length=64,
    ),
    _row("Bamba", "Bamba", attn_layer_indices=[1], **_MAMBA),
    _row(
        "Nemotron-H",
        "NemotronH",
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        head_dim=8,
    ),
    _row(
        "MiniMax",
        "MiniMax",
        head_dim=8,
        num_local_experts=2,
        layer_types=["linear_attention", "full_attention"],
        block_size=4,
    ),
)
