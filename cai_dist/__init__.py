"""Constitutional AI, distributed (Bai et al. 2022, arXiv 2212.08073): the names of `__all__` are the public Python API.

    import cai_dist

    constitution = cai_dist.Constitution.load("default")
    model = cai_dist.FeedbackModel.load("path/of/a/model")
    p_a, p_b = model.probabilities("How do I open a lock?", "Ask a locksmith.", "Break it.", "Which is less harmful?")

A name is imported when it is first used: `import cai_dist` itself imports no torch, transformers or ray. docs/python.md
shows each name at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cai_dist.api.chat_model import ChatModel
    from cai_dist.api.feedback_model import FeedbackModel
    from cai_dist.api.preference_model import PreferenceModel
    from cai_dist.api.revision import RevisedAnswer, RevisionRound, critique_and_revise
    from cai_dist.api.runs import run_pipeline, run_stage
    from cai_dist.config.loading.load import load_run
    from cai_dist.config.run import RunConfig
    from cai_dist.constitution.schema import Constitution
    from cai_dist.errors import CaiError, ConfigError, DataError
    from cai_dist.types.text import Turn

__all__ = [
    "CaiError",
    "ChatModel",
    "ConfigError",
    "Constitution",
    "DataError",
    "FeedbackModel",
    "PreferenceModel",
    "RevisedAnswer",
    "RevisionRound",
    "RunConfig",
    "Turn",
    "critique_and_revise",
    "load_run",
    "run_pipeline",
    "run_stage",
]

_MODULE_OF = {
    "CaiError": "cai_dist.errors",
    "ChatModel": "cai_dist.api.chat_model",
    "ConfigError": "cai_dist.errors",
    "Constitution": "cai_dist.constitution.schema",
    "DataError": "cai_dist.errors",
    "FeedbackModel": "cai_dist.api.feedback_model",
    "PreferenceModel": "cai_dist.api.preference_model",
    "RevisedAnswer": "cai_dist.api.revision",
    "RevisionRound": "cai_dist.api.revision",
    "RunConfig": "cai_dist.config.run",
    "Turn": "cai_dist.types.text",
    "critique_and_revise": "cai_dist.api.revision",
    "load_run": "cai_dist.config.loading.load",
    "run_pipeline": "cai_dist.api.runs",
    "run_stage": "cai_dist.api.runs",
}


def __getattr__(name: str) -> Any:
    """The public name `name`, imported now. Raises AttributeError for any other."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cai_dist' has no attribute {name!r}; its names are {', '.join(__all__)}")
    found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
