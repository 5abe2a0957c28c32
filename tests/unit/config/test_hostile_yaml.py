"""Run files that would keep `check` busy for ever, or write on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai_dist.config.loading.load import load_run
from cai_dist.errors import ConfigError


def refusal(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run(path, [])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "more",
    ["x{n}: &x{n} [*x{b},*x{b},*x{b},*x{b},*x{b},*x{b},*x{b},*x{b},*x{b}]", "x{n}: &x{n} {{<<: [*x{b}, *x{b}]}}"],
)
def test_aliases_of_aliases_are_refused_before_they_are_written_out(tmp_path: Path, more: str) -> None:
    first = "x0: &x0 [a]" if "<<" not in more else "x0: &x0 {k: 1}"
    lines = refusal(tmp_path, "\n".join([first, *(more.format(n=n, b=n - 1) for n in range(1, 25))]))
    assert len(lines) == 1 and "more than 100000 values with its aliases written out" in lines[0]


def test_the_values_behind_aliases_count_each_time(tmp_path: Path) -> None:
    sixty = [f"x0: &x0 [{','.join('a' * 60)}]", *(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 60)}]" for n in (1, 2))]
    [line] = refusal(tmp_path, "\n".join(sixty))
    assert line.startswith(f"{tmp_path / 'run.yaml'}: more than 100000 values")


def test_an_alias_of_what_it_stands_in_is_refused(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "name: x\ndata: &a {red_team: *a}\n")) == 1


def test_a_key_that_would_paint_the_terminal_is_shown_with_its_escapes(tmp_path: Path) -> None:
    [line] = refusal(tmp_path, 'name: x\n"x\\e[31m\\ncai-dist: error: forged": 1\n')
    assert "\x1b" not in line and r"'x\x1b[31m\ncai-dist: error: forged': a key must be printable" in line


def test_thousands_of_unknown_keys_are_counted_and_the_first_described(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "name: x\n" + "".join(f"ppoo_{n}: 1\n" for n in range(5000)))
    assert len(lines) == 51 and lines[-1].endswith("4950 more keys are wrong")
