"""Every setting of `feedback` and `preference` decides the result of its stage, or is known to be harmless: a new field
that nobody has thought of turns this red."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cai_dist.config.base import Section
from cai_dist.config.feedback import EndpointConfig, FeedbackConfig, ReasoningConfig
from cai_dist.config.loading.load import build_run
from cai_dist.config.preference import PmPretrainingConfig, PreferenceConfig
from cai_dist.stages import feedback, preference

ENDPOINT = {"url": "http://127.0.0.1:8000/v1", "model": "m"}
RANKED = {"data": {"ranked_answers": {"source": "world"}}}
CASES: dict[type[Section], tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    FeedbackConfig: (
        feedback,
        {"feedback": {}},
        {
            "pairs_per_prompt": 2, "orders": "one", "labels": "inverted", "principles": 3, "few_shot": 1, "per_pair": 2,
            "temperature": 2.0, "hard": True, "reasoning": {}, "form": "text", "endpoint": ENDPOINT, "prefill": "(",
            "option_labels": ["A", "B"], "min_option_mass": 0.2,
            "model": "tests.tiny:save_llama", "sampling": {"temperature": 0.5}, "shard_size": 64,
        },
        {"workers": 1, "gate": None},
    ),
    ReasoningConfig: (
        feedback,
        {"feedback": {"reasoning": {}}},
        {
            "clamp": None, "opening": "Think:", "closing": "So:", "few_shot": 1, "sampling": {"temperature": 0.5},
            "retries": 3, "chains": 5,
        },
        {},
    ),
    EndpointConfig: (
        feedback,
        {"feedback": {"endpoint": ENDPOINT}},
        {
            "url": "http://127.0.0.1:8001/v1", "model": "n", "top_logprobs": 5, "min_temperature": 1.0,
            "api_version": "2024-10-21", "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        },
        {
            "api_key_env": "OTHER", "requests_per_minute": 3.0, "concurrency": 1, "retries": 1, "timeout": 1.0,
            "max_failed": 0.5, "max_tokens_field": "max_completion_tokens", "api_key_header": "api-key",
        },
    ),
    PreferenceConfig: (
        preference,
        {"preference": {}, **RANKED},
        {
            "init": "sl", "helpful_fraction": 0.25, "label_fraction": 0.5, "margin": 1.0,
            "pretraining": {"good": "yes"}, "calibrate": False, "halves": True, "train": {"epochs": 2}, "lora": {},
        },
        {"gate": None},
    ),
    PmPretrainingConfig: (
        preference,
        {"preference": {"pretraining": {}}, **RANKED},
        {"language_weight": 0.5, "good": "yes", "bad": "no", "pairs_per_question": 2, "train": {"epochs": 2}},
        {},
    ),
}  # fmt: skip


def cases() -> Iterator[Any]:
    for section, (stage, base, deciding, harmless) in CASES.items():
        for key, value in {**deciding, **harmless}.items():
            yield pytest.param(stage, base, key, value, key in deciding, id=f"{section.__name__}.{key}")


def changed(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`base` with `key` in its innermost section of the first branch."""
    (name, inner), *rest = base.items()
    deeper = next((k for k, v in inner.items() if isinstance(v, dict)), None)
    made = {**inner, deeper: {**inner[deeper], key: value}} if deeper else {**inner, key: value}
    return {name: made, **dict(rest)}


@pytest.mark.parametrize("section", CASES, ids=lambda s: s.__name__)
def test_every_field_is_here(section: type[Section]) -> None:
    _, _, deciding, harmless = CASES[section]
    assert set(section.model_fields) == set(deciding) | set(harmless) and not set(deciding) & set(harmless)


@pytest.mark.parametrize(("stage", "base", "key", "value", "decides"), list(cases()))
def test_a_changed_setting_makes_the_stage_anew(stage: Any, base: Any, key: str, value: Any, decides: bool) -> None:
    before = build_run({"name": "x", **base})
    after = build_run({"name": "x", **changed(base, key, value)})
    assert before != after
    assert (stage.settings(before) != stage.settings(after)) == decides


def test_pretraining_decides_nothing_without_ranked_answers() -> None:
    one, other = (build_run({"name": "x", "preference": {"pretraining": {"good": w}}}) for w in ("a", "b"))
    assert preference.settings(one) == preference.settings(other)
