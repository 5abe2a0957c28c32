"""Strategies by name or by import path: what is found, what is refused in one line, what goes into a fingerprint."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from cai_dist.config.loading.load import build_run
from cai_dist.errors import ConfigError
from cai_dist.registry import Registry, Signature, find_object, is_path, methods_of, source_note, source_notes
from cai_dist.stages import ppo as stage

SOURCE = """
from cai_dist.config.algorithms import AlgorithmDefaults, algorithm

def plain(batch, config):
    return "plain"

@algorithm(AlgorithmDefaults(needs_group=True, ratio="sequence"))
def grouped(batch, config):
    return "grouped"

def one_argument(batch):
    return None

class Half:
    def start(self): ...

number = 3
"""


class Engine(Protocol):
    def start(self) -> None: ...

    @property
    def speed(self) -> float: ...


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with the package `strangers`."""
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "__init__.py").write_text("")
    (tmp_path / "strangers" / "algo.py").write_text(SOURCE)
    (tmp_path / "strangers" / "broken.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    find_object.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers"]:
        del sys.modules[name]


REGISTRY: Registry[Any] = Registry("ppo.algorithm", {"one": lambda: 1}, Signature(("batch", "config")))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a.b:c", True),
        ("a:c", True),
        ("a.b", False),
        ("a/b:c", False),
        ("a:b:c", False),
        (":c", False),
        ("a.1:c", False),
    ],
)
def test_the_form_of_a_path(name: str, fits: bool) -> None:
    assert is_path(name) == fits


def test_a_built_in_name_and_a_path(package: Path) -> None:
    assert REGISTRY.resolve("one") == 1
    assert REGISTRY.resolve("strangers.algo:plain")(None, None) == "plain"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "ppo.algorithm=two: must be one of one, or package.module:object"),
        ("nowhere.at.all:x", "ppo.algorithm=nowhere.at.all:x: no module nowhere.at.all; install its package, or put"),
        ("strangers.alga:x", "no module strangers.alga;"),
        ("strangers.algo:plane", "the module strangers.algo has no plane; did you mean plain?"),
        ("strangers.algo:number", "must be callable with (batch, config), and is a int"),
        ("strangers.algo:one_argument", "must be callable with (batch, config): too many positional arguments"),
        ("strangers.broken:x", "the module strangers.broken cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_one_line(package: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        REGISTRY.resolve(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_must_have_what_the_protocol_asks_for(package: Path) -> None:
    assert methods_of(Engine) == ["start", "speed"]
    with pytest.raises(ConfigError, match="strangers.algo:Half: lacks speed of the protocol Engine"):
        find_object("strangers.algo:Half", "engine.backend", Signature((), protocol=Engine))


def test_the_source_is_part_of_the_fingerprint_of_a_stage(package: Path) -> None:
    plain = stage.settings(build_run({"name": "x"}))
    assert "strategies" not in plain and source_notes({"ppo.algorithm": "grpo"}) == {}
    config = build_run({"name": "x", "ppo": {"algorithm": "strangers.algo:plain"}})
    before = stage.settings(config)
    assert before["strategies"]["ppo.algorithm"] == {
        "path": "strangers.algo:plain",
        "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(),
    }
    (package / "strangers" / "algo.py").write_text(SOURCE + "# changed\n")
    assert stage.settings(config) != before
    with pytest.raises(ConfigError, match="x=strangers.none:y: no module strangers.none"):
        source_note("strangers.none:y", "x")


def test_a_run_looks_at_the_form_alone_and_asks_the_object_later() -> None:
    config = build_run({"name": "x", "ppo": {"algorithm": "not.there:x"}})
    with pytest.raises(ConfigError, match="ppo.algorithm=not.there:x: no module not.there"):
        _ = config.ppo.defaults
    with pytest.raises(ConfigError, match="or package.module:object"):
        build_run({"name": "x", "ppo": {"algorithm": "not there"}})


def test_an_algorithm_of_ones_own_says_what_it_needs(package: Path) -> None:
    plain, grouped = (
        build_run({"name": "x", "ppo": {"algorithm": f"strangers.algo:{name}"}}).ppo for name in ("plain", "grouped")
    )
    assert (plain.kl_where, plain.aggregation, plain.whitens) == ("loss", "token", False)
    assert plain.roles == ("policy", "reference", "reward", "rollout")
    assert grouped.defaults.needs_group and grouped.defaults.ratio == "sequence"


def test_gae_is_ppo_with_the_fingerprint_that_it_always_had() -> None:
    old, new, other = (build_run({"name": "x", "ppo": {"algorithm": name}}) for name in ("gae", "ppo", "reinforce++"))
    assert old == new == build_run({"name": "x"}) and old.ppo.algorithm == "ppo"
    assert [stage.settings(run)["ppo"]["algorithm"] for run in (old, new, other)] == ["gae", "gae", "reinforce++"]
