"""Libraries that tell of themselves, kept out of what a person sees. What they fail at is raised all the same."""

from __future__ import annotations

import logging

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """No progress bars and advice of transformers; not DeepSpeed's guess that there is no GPU, which it makes where
    accelerate imports it to look at the class of a model that is saved (`engines` tell it what there is)."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").addFilter(_is_no_guess)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is there, and it advises


def _is_no_guess(record: logging.LogRecord) -> bool:
    return record.filename != "real_accelerator.py" or record.levelno > logging.WARNING
