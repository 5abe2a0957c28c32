"""Loading models and tokenizers from a local folder or a hub name: safetensors only, no code from the folder is run.

Every failure becomes one `DataError` line; a checkpoint with missing or misshapen tensors is
refused (transformers itself would fill them with random numbers and only warn).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from cai_dist.config.training import Dtype, Layout
from cai_dist.errors import CaiError, DataError
from cai_dist.models.adapter import Adapter, base_of, merge_adapter, read_adapters
from cai_dist.models.causal import CausalModel, LogprobHead, logit_scaling
from cai_dist.models.layout import use_layout
from cai_dist.models.partition import Partition, held
from cai_dist.models.scalar import ScalarHeadModel, seed_head
from cai_dist.models.sharded import load_partitioned
from cai_dist.models.shrunken import shrunken_causal
from cai_dist.models.tensors import TORCH_DTYPES, all_finite
from cai_dist.tracking.quiet import quiet_libraries

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.json",
)

quiet_libraries()


def load_tokenizer(source: str) -> Any:
    """The tokenizer beside a model (a transformers fast tokenizer). Raises DataError."""
    return _pretrained(AutoTokenizer, source, "tokenizer")


def load_causal(
    source: str, dtype: Dtype, layout: Layout = "packed", partition: Partition | None = None
) -> CausalModel:
    """A causal language model to train or to score with; see `load_hf_causal`. With `partition` each rank gets its part
    of it, where that puts it (collective), and what is compared at loading is compared on a small random copy of the
    architecture. Raises DataError, ConfigError."""
    like = None
    if partition is not None:
        like = CausalModel(shrunken_causal(load_config(source)), layout).hf
    return CausalModel(_hf_causal(source, dtype, partition), layout, like)


def load_hf_causal(source: str, dtype: Dtype) -> Any:
    """A transformers causal language model in `dtype` on the CPU, in evaluation mode.

    `source` may be the folder of a LoRA adapter: then its base (a local folder) with the adapter merged into it; the
    base may be such a folder itself. Raises DataError.
    """
    return _hf_causal(source, dtype, None)


def load_hf_scalar(source: str, dtype: Dtype) -> Any:
    """A transformers sequence-classification model with one label in `dtype` on the CPU, in evaluation mode; `source`
    is a saved scalar model or the folder of an adapter with a scalar head. Raises DataError."""
    if not has_scalar_head(source):
        raise DataError(f"{source}: a model without a scalar head")
    return _hf_scalar(source, dtype, 0, None)


def has_scalar_head(source: str) -> bool:
    """Whether `source` is a saved scalar model, or an adapter that was trained with a scalar head. Raises DataError."""
    base, adapters = read_adapters(source)
    made = load_config(base).architectures or []
    saved = any(name.endswith("ForSequenceClassification") for name in made)
    return saved or any(adapter.head is not None for adapter in adapters)


def _hf_causal(source: str, dtype: Dtype, partition: Partition | None) -> Any:
    base, adapters = read_adapters(source)
    model, info = _weights(AutoModelForCausalLM, base, "causal language model", dtype, partition)
    _refuse_gaps(base, info, allowed=())
    return _merged(source, model, adapters, partition)


def _hf_scalar(source: str, dtype: Dtype, seed: int, partition: Partition | None) -> Any:
    base, adapters = read_adapters(source)
    model, info = _weights(AutoModelForSequenceClassification, base, "scalar model", dtype, partition, num_labels=1)
    _refuse_gaps(base, info, allowed=("score.weight",))
    if "score.weight" in info["missing_keys"]:
        seed_head(model.score.weight, seed, partition)
    return _merged(source, model, adapters, partition)


def _merged(source: str, model: Any, adapters: Sequence[Adapter], partition: Partition | None) -> Any:
    for adapter in adapters:
        merge_adapter(model, adapter, partition)
    _refuse_non_finite(source, model, partition)
    return model


def load_scalar(
    source: str, dtype: Dtype, seed: int, layout: Layout = "packed", partition: Partition | None = None
) -> ScalarHeadModel:
    """A trunk with one scalar per token in `dtype` on the CPU; `partition` as in `load_causal`.

    `source` is a causal language model (the head is drawn from `seed`, the same on every rank) or a saved scalar model
    (the head is kept); or the folder of an adapter on one of them, which is merged. Raises DataError, ConfigError.
    """
    like = None if partition is None else shrunken_causal(load_config(source))
    if like is not None:
        use_layout(like, layout)
    return ScalarHeadModel(_hf_scalar(source, dtype, seed, partition), layout, like)


def load_scalar_with_language(
    source: str, dtype: Dtype, seed: int, layout: Layout = "packed", partition: Partition | None = None
) -> ScalarHeadModel:
    """A scalar model, like `load_scalar` from a causal language model, with its output layer beside the scalar head, so
    that the trunk can go on learning language. Tied to the embeddings where the source has it so. Raises DataError,
    ConfigError.
    """
    scalar = load_scalar(source, dtype, seed, layout, partition)
    # Its layout does not matter: what is taken is the output layer, checked against transformers' own logits.
    causal = load_causal(source, dtype, "padded", partition)
    head: LogprobHead = causal.hf.get_output_embeddings()
    if head.weight is causal.hf.get_input_embeddings().weight:
        head.weight = scalar.hf.get_input_embeddings().weight
    scalar.language, scalar.scaling = head, logit_scaling(scalar.hf.config)
    return scalar


def load_config(source: str) -> Any:
    """The transformers configuration of a model, or of the one under an adapter. Raises DataError."""
    return _pretrained(AutoConfig, base_of(source), "model")


def copy_tokenizer(source: str, folder: Path) -> None:
    """Put the tokenizer of `source` beside an exported model; a source without one is left alone."""
    origin = Path(source)
    if not origin.is_dir():
        load_tokenizer(source).save_pretrained(folder)
        return
    for name in _TOKENIZER_FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def _pretrained(auto: Any, source: str, what: str, **kwargs: Any) -> Any:
    _refuse_no_model(source, what)
    try:
        loaded = auto.from_pretrained(source, trust_remote_code=False, **kwargs)
    except Exception as error:  # transformers raises anything from OSError to KeyError for a broken folder
        raise _unloadable(source, what, error) from error
    # Transformers follows an adapter_config.json by itself and puts live adapters, of any kind, into the base.
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise DataError(f"{what}: {source!r} is an adapter on another model; merge it and give the whole model")
    return loaded


def _refuse_no_model(source: str, what: str) -> None:
    folder = Path(source)
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(source):
            raise DataError(f"{what}: there is no folder {source!r}; give a model folder or a hub name")
    elif not (folder / "config.json").is_file() and what != "tokenizer":
        raise DataError(f"{what}: {source} holds no config.json; give a folder in the Hugging Face layout")


def _unloadable(source: str, what: str, error: Exception) -> DataError:
    line = " ".join(str(error).split())[:300]
    return DataError(f"{what}: cannot load {source!r}: {type(error).__name__}: {line}")


def _weights(
    auto: Any, source: str, what: str, dtype: Dtype, partition: Partition | None, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    """The model, whole or this rank's part of it, and what transformers says about the loading."""
    if partition is None:
        made: tuple[Any, dict[str, Any]] = _pretrained(
            auto,
            source,
            what,
            dtype=TORCH_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            **changes,
        )
        return made
    _refuse_no_model(source, what)
    try:
        return load_partitioned(auto, source, TORCH_DTYPES[dtype], partition, **changes)
    except CaiError:
        raise
    except Exception as error:
        raise _unloadable(source, what, error) from error


def _refuse_non_finite(source: str, model: Any, partition: Partition | None) -> None:
    """All ranks look at what they hold, and all raise, even where one alone has found something."""
    place = (0, 1) if partition is None else (partition.rank, partition.ranks)
    bad = [name for name, parameter in model.named_parameters() if not all_finite([held(parameter, *place)])]
    if (partition is None or partition.everywhere(not bad)) and not bad:
        return
    more = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
    where = f"{bad[0]}{more}" if bad else "the part of another rank"
    raise DataError(f"the weights in {source!r} are not finite: NaN or infinite numbers in {where}")


def refuse_non_finite_files(folder: Path) -> None:
    """Look at the weights in a model folder's `*.safetensors`, one tensor at a time, for an engine that loads them by
    itself; what it downloads under a hub name is not seen here. Raises DataError for a NaN or infinite number."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                if not all_finite([tensors.get_tensor(name)]):
                    raise DataError(f"the weights in {str(file)!r} are not finite: NaN or infinite numbers in {name}")


def _refuse_gaps(source: str, info: dict[str, Any], allowed: tuple[str, ...]) -> None:
    missing = sorted(set(info["missing_keys"]) - set(allowed))
    wrong = sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing or wrong:
        what = f"lacks {missing[0]}" if missing else f"has another shape for {wrong[0]} than its config.json says"
        more = len(missing) + len(wrong) - 1
        raise DataError(f"the weights in {source!r} {what}" + (f" (and {more} more tensors)" if more else ""))
