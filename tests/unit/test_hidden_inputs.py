"""What a run makes depends on its settings and files, on no clock, locale, time zone or order of sets.

Read from the syntax trees of the whole package: a call that reads one of these has to say which, or stand here by name.
"""

from __future__ import annotations

import ast
import locale
import re
import time
from datetime import date
from pathlib import Path

import pytest

import cai_dist
from cai_dist.data.template import english
from cai_dist.tracking.manifest import Manifest
from cai_dist.types import Turn
from tests.unit.data.chat_families import FAMILIES
from tests.unit.data.test_templates import formed

ROOT = Path(cai_dist.__file__).parent
ALLOWED = {
    ("doctor/facts.py", "read_text"),  # files of the kernel, in ASCII
    ("data/template.py", "today"),
    ("config/data.py", "hash"),  # of an object in memory
}
"""(file, function)."""
_WORDS = re.compile(
    r"read_text|write_text|open\(|\.now\(|fromtimestamp|today|utcnow|setlocale|getlocale|preferredencoding|\bhash\("
)


def test_no_call_reads_the_locale_or_the_time_zone() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ROOT.rglob("*.py")
        if _WORDS.search(text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and (name := _hidden(node))
    }
    assert found - ALLOWED == set()


def _hidden(call: ast.Call) -> str:
    """The name of what is called where the call reads something that is not written there; "" where it does not."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    if name == "read_text" and not call.args and "encoding" not in given:
        return name
    if name == "write_text" and len(call.args) == 1 and isinstance(call.func, ast.Attribute) and not given:
        return name
    if isinstance(call.func, ast.Name) and name == "open" and "encoding" not in given:
        return "" if any("b" in mode for mode in modes) else name
    if name in ("now", "fromtimestamp") and not call.args[name == "fromtimestamp" :] and not given:
        return name if _of(call, ("datetime", "date")) else ""
    if name in ("today", "utcnow", "setlocale", "getlocale", "getpreferredencoding"):
        return name
    return name if isinstance(call.func, ast.Name) and name == "hash" else ""


def _of(call: ast.Call, names: tuple[str, ...]) -> bool:
    return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in names


DAY = date(2026, 3, 2)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%d %b %Y", "02 Mar 2026"),
        ("%A, %B %d, %Y", "Monday, March 02, 2026"),
        ("%a %h %-d", "Mon Mar 2"),
        ("%Y-%m-%dT%H:%M:%S%z %Z", "2026-03-02T00:00:00+0000 UTC"),
        ("%c|%x|%X|%p", "Mon Mar  2 00:00:00 2026|03/02/26|00:00:00|AM"),
        ("100%% %%B", "100% %B"),
    ],
)
def test_a_day_is_told_in_english_at_midnight(form: str, text: str) -> None:
    assert english(DAY, form) == text


def test_prompts_are_the_same_in_every_time_zone_and_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    before, tongue = made_of_families(), locale.setlocale(locale.LC_ALL)
    try:
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        time.tzset()
        locale.setlocale(locale.LC_ALL, "")
        assert made_of_families() == before
    finally:
        monkeypatch.undo()
        time.tzset()
        locale.setlocale(locale.LC_ALL, tongue)


def made_of_families() -> list[object]:
    families = [f for f in FAMILIES if f.date or f.texts]
    text = " ".join([*families[0].special, "[/INST] <|user|>"])
    return [[f.name, formed(f).prompt_ids((Turn("human", text),)), formed(f).stop_ids] for f in families]


def test_a_run_has_one_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day in UTC on which its manifest was first written; another begun later has another."""
    import cai_dist.tracking.manifest as module

    class Clock:
        told = "2026-11-30"

        @classmethod
        def now(cls, zone: object) -> date:
            assert str(zone) == "UTC"
            return type("At", (), {"date": lambda self: date.fromisoformat(cls.told)})()  # type: ignore[return-value]

    monkeypatch.setattr(module, "datetime", Clock)
    first = Manifest(tmp_path / "a")
    (tmp_path / "a").mkdir()
    first.begin("prepare", "f", {})
    Clock.told = "2026-12-01"
    assert first.date == Manifest(tmp_path / "a").date == "2026-11-30"
    assert Manifest(tmp_path / "b").date == "2026-12-01"
