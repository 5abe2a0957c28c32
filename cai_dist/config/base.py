"""The strict, frozen base of every configuration section."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cai_dist.registry import PATH_PATTERN

StrategyPath = Annotated[str, Field(pattern=PATH_PATTERN)]
"""`package.module:object`, a strategy of one's own (docs/extending.md)."""


class Section(BaseModel):
    """Unknown keys are refused, values are not coerced across types, instances cannot be changed.

    A field's explanation stands in a string under the field. A validator's message starts with `key=value` (the key as
    seen from its section: loading puts the section's own name in front) and says what is allowed; several problems are
    several lines.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
