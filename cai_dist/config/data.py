"""Where prompts, human comparisons and other human-made data come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section


class DataSource(Section):
    """A data set whose name does not say all: a file, a folder or a pattern on disk (`path`), or a data set of the hub
    (`hub`), with its columns named. Which layouts and files are read: docs/data.md."""

    path: str | None = None
    """A file, a folder of shards, a `save_to_disk` folder, or a pattern such as `data/train-*.parquet`."""
    hub: str | None = None
    """A name on the data-set hub such as `org/name`, or a folder in the hub's form; read by `datasets.load_dataset`,
    which runs no code of the data set."""
    name: str | None = None
    """Configuration of the hub's data set, where it has several."""
    split: str | None = None
    """Split to read; default: `train` of the hub, and on disk the only one there is."""
    revision: str | None = None
    """Commit, tag or branch of the hub's data set; default: the newest. What was read is part of the fingerprint."""
    columns: dict[str, str | tuple[str, ...]] = {}
    """Column of the layout -> column of the data set, or several whose texts are joined by an empty line:
    `{prompt: question}`, `{prompt: [title, body]}`."""
    ignore: tuple[str, ...] = ()
    """Columns that are not looked at. Without this, words in a column that the layout does not know are refused."""

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("path: give path or hub, and not both")
        of_hub = [key for key in ("name", "revision") if getattr(self, key) is not None]
        if self.path is not None and of_hub:
            raise ValueError(f"{of_hub[0]}={getattr(self, of_hub[0])!r}: is for data sets of the hub; leave it out")
        both = sorted(set(self.columns) & set(self.ignore))
        if both:
            raise ValueError(f"ignore={both}: named under columns, too; name each column once")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class PromptSource(Section):
    """Where prompts come from: `world`, a path, or a `DataSource`.

    Known layouts, among others: hh-rlhf (`chosen`, `rejected` dialogues), `messages`, ShareGPT, instructions
    (`instruction`, `input`), plain (`prompt` as text or as a list of {"role", "content"}).
    """

    source: str | DataSource = "world"
    limit: int | None = Field(None, ge=1)
    """Use this many training prompts (drawn by the run's seed); default: all."""
    turns: Literal["each", "last"] = "each"
    """A conversation gives a training prompt for `each` human turn of it (paper, section 3.2), or for the `last` one
    alone. A record that names its prompt (`prompt`, `instruction`) gives that one. Held-out prompts are last ones."""
    max_turns: int | None = Field(None, ge=1)
    """Leave out prompts of more turns than this (all parties' turns count), and say how many; default: none."""
    heldout: int = Field(64, ge=1)
    """Prompts set aside for evaluation; no training stage sees them, nor any part of their conversations."""


class ComparisonSource(Section):
    """Human helpfulness comparisons for the preference model: `world`, `none`, a path or a `DataSource`."""

    source: str | DataSource = "world"
    limit: int | None = Field(None, ge=1)
    heldout: int = Field(200, ge=0)
    """Set aside at most this many to measure the preference model on; nothing learns from them. Of a file: what `limit`
    leaves over, or at most a tenth where there is no limit."""


class RankedSource(Section):
    """Ranked answers of people, to pretrain the preference model on: `none`, `world`, a path or a `DataSource`, in the
    layout of stack-exchange-preferences (`question`, `answers` of `text`, `pm_score`, `selected`)."""

    source: str | DataSource = "none"
    limit: int | None = Field(None, ge=1)
    """Use this many questions (drawn by the run's seed); default: all, or 2000 of the micro-world's."""


class RatingSource(Section):
    """Human ratings of answers for absolute harmfulness (paper, section 4.5): `none`, `world`, a path or a `DataSource`
    with `prompt` (as in `PromptSource`), `response` and `rating` from 0 (harmless) to 4, or `transcript` and
    `rating`."""

    source: str | DataSource = "none"
    """`none`: no absolute harmfulness."""
    limit: int | None = Field(None, ge=1)
    """Use this many ratings (drawn by the run's seed); default: all, or 2000 of the micro-world's."""


class DataConfig(Section):
    """Where prompts and human comparisons come from."""

    red_team: PromptSource = PromptSource()
    helpful: PromptSource = PromptSource()
    helpful_comparisons: ComparisonSource = ComparisonSource()
    ranked_answers: RankedSource = RankedSource()
    harm_ratings: RatingSource = RatingSource()
