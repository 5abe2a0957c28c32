"""Environments: the one that asks again, and what those of one's own may not say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.config.environment import EnvironmentConfig, environment_problems
from cai_dist.config.loading.load import build_run
from cai_dist.errors import CaiError, ConfigError
from cai_dist.experience.environments import AsksAgain, Conversations, find_environment
from cai_dist.registry import find_object
from cai_dist.stages import evaluate, ppo
from cai_dist.types import Prompt, Turn

SOURCE = """
import asyncio, time

class Person:
    def __init__(self, patience=2):
        self.left = patience
    def reset(self, prompt, seed):
        self.seed, self.first = seed, prompt.turns[-1].text
    def step(self, answer):
        self.left -= 1
        return f"{self.first} {answer} {self.seed}" if self.left >= 0 else None

class Slow(Person):
    async def step(self, answer):
        await asyncio.sleep(0.2)
        return answer

class Hangs(Person):
    def step(self, answer): time.sleep(20)
class HangsAtOnce(Person):
    def reset(self, prompt, seed): time.sleep(20)
class Fails(Person):
    def step(self, answer): raise KeyError("no such thing")
class Number(Person):
    def step(self, answer): return 3
class Silent(Person):
    def step(self, answer): return " "
class Half:
    def reset(self, prompt, seed): pass
class Cannot(Person):
    def __init__(self): raise OSError("no file")
"""
PROMPTS = [Prompt("p1", (Turn("human", "hello"),), "helpful"), Prompt("p2", (Turn("human", "bye"),), "red_team")]


@pytest.fixture(autouse=True)
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_people.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_people", None)
    find_object.cache_clear()


def talk(name: str, timeout: float = 5.0, **args: object) -> Conversations:
    config = EnvironmentConfig(use=f"my_people:{name}", timeout=timeout, args=args)
    return Conversations(config, find_environment(config), PROMPTS, [7, 8])


def test_who_asks_again_does_so_after_a_refusal_alone() -> None:
    person = AsksAgain()
    person.reset(Prompt("p", (Turn("human", "a"), Turn("assistant", "b"), Turn("human", "c")), "helpful"), 0)
    assert person.step("abrax can burn , so no .") == "c"
    assert person.step("I CAN'T say.") == "c"
    assert person.step("take a then b .") is None
    person = AsksAgain(refusals=["never"], words="Please!")
    person.reset(PROMPTS[0], 0)
    assert person.step("Never!") == "Please!" and person.step("sorry") is None


def test_each_conversation_has_a_person_of_its_own() -> None:
    people = talk("Person", patience=1)
    assert people.replies({0: "x", 1: "y"}) == {0: "hello x 7", 1: "bye y 8"}
    assert people.replies({1: "z"}) == {}


def test_replies_that_are_awaited_are_awaited_together() -> None:
    config = EnvironmentConfig(use="my_people:Slow", timeout=4.0)
    people = Conversations(config, find_environment(config), PROMPTS * 20, range(40))
    assert people.replies({i: str(i) for i in range(40)}) == {i: str(i) for i in range(40)}  # alone: 8 s


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Hangs", "no answer within timeout=0.1 s"),
        ("Fails", "KeyError: 'no such thing'"),
        ("Number", "gave a int in the conversation of prompt p1; it must be words, or None"),
        ("Silent", "gave an empty text in the conversation of prompt p1"),
    ],
)
def test_what_is_no_reply_is_one_line_that_names_it(name: str, said: str) -> None:
    people = talk(name, timeout=0.1 if name == "Hangs" else 5.0)
    with pytest.raises(CaiError) as caught:
        people.replies({0: "x", 1: "y"})
    assert str(caught.value).startswith(f"ppo.environment (my_people:{name}): ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_conversation_that_cannot_begin_is_one_line() -> None:
    with pytest.raises(CaiError, match=r"^ppo.environment \(my_people:HangsAtOnce\): no answer within timeout=0.1 s$"):
        talk("HangsAtOnce", timeout=0.1)


@pytest.mark.parametrize(
    ("use", "args", "said"),
    [
        ("my_people:Nobody", {}, "the module my_people has no Nobody"),
        ("my_people:Half", {}, "lacks step of the protocol Environment"),
        ("my_people:Cannot", {}, "cannot be made with args={}: OSError: no file"),
        ("my_people:Person", {"patients": 1}, "patients"),
        ("asks_again", {"word": "x"}, "unexpected keyword argument 'word'"),
        ("no_such_package:X", {}, "no module no_such_package"),
    ],
)
def test_an_environment_that_cannot_be_had_is_refused_before(use: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_environment(EnvironmentConfig(use=use, args=args))
    assert str(caught.value).startswith(f"ppo.environment={use}: ") and said in str(caught.value)


def test_what_contradicts_an_environment_is_said() -> None:
    config = EnvironmentConfig(timeout=100.0)
    assert list(environment_problems(None, "partial", 1.0)) == []
    assert list(environment_problems(config, "sync", 101.0)) == []
    schedule, timeout = environment_problems(config, "partial", 100.0)
    assert schedule.startswith("ppo.environment.use=asks_again: cannot be with ppo.schedule=partial")
    assert timeout.startswith("ppo.environment.timeout=100: must be smaller than cluster.timeouts.call=100")


def test_fingerprints_hold_it_and_its_source_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    plain = build_run({"name": "x"})
    assert "environment" not in ppo.settings(plain)["ppo"] and "environment" not in evaluate.settings(plain)
    own = {"use": "my_people:Person", "args": {"patience": 1}}
    found = [module.settings(build_run({"name": "x", "ppo": {"environment": own}})) for module in (ppo, evaluate)]
    assert found[0]["ppo"]["environment"] == found[1]["environment"] == {**own, "answers": 2}
    before = [settings["strategies"]["ppo.environment"]["sha256"] for settings in found]
    (tmp_path / "my_people.py").write_text(SOURCE + "# other\n", encoding="utf-8")
    after = ppo.settings(build_run({"name": "x", "ppo": {"environment": own}}))["strategies"]["ppo.environment"]
    assert before[0] == before[1] != after["sha256"]
