"""The commands `cai-dist constitution lint|show|diff`."""

from __future__ import annotations

import argparse
from typing import Any

from cai_dist.errors import EXIT_FAILURE, EXIT_OK

ABOUT = "look at a constitution: default, micro, a YAML file or a folder with the published JSON files"


def add_commands(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add `constitution` and its own commands; each sets `command`, which returns the exit code."""
    tools = commands.add_parser("constitution", parents=[common], help=ABOUT, description=ABOUT)
    kinds = tools.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = (
        (
            "lint",
            _lint,
            "advice, a line each; exit code 2 where it is malformed, 1 where --strict finds advice",
        ),
        ("show", _show, "principles, templates and worked examples, version and hash"),
        ("diff", _diff, "what differs between two of them, and both hashes"),
    )
    for name, command, about in words:
        one = kinds.add_parser(name, parents=[common], help=about, description=about)
        one.set_defaults(command=command)
        one.add_argument("source", metavar="CONSTITUTION", help="a packaged name or a path")
        if name == "lint":
            one.add_argument("--strict", action="store_true", help="exit code 1 where there is advice (for CI)")
        if name == "diff":
            one.add_argument("other", metavar="OTHER", help="the one to compare it with")


def _lint(arguments: argparse.Namespace) -> int:
    from cai_dist.constitution.lint import lint
    from cai_dist.constitution.load import load_constitution
    from cai_dist.constitution.show import headline

    constitution = load_constitution(arguments.source)
    findings = lint(constitution)
    for finding in findings:
        _print(f"{arguments.source}: advice: {finding}")
    count = {0: "no advice", 1: "1 line of advice"}.get(len(findings), f"{len(findings)} lines of advice")
    _print(f"{arguments.source}: in order, {count}: {headline(constitution)}")
    return EXIT_FAILURE if arguments.strict and findings else EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    from cai_dist.constitution.load import load_constitution
    from cai_dist.constitution.show import headline, tables
    from cai_dist.tracking.console import Console

    constitution = load_constitution(arguments.source)
    with Console() as console:
        console.say(headline(constitution))
        for table in tables(constitution):
            console.table(table.title, table.columns, table.rows, text=True)
    return EXIT_OK


def _diff(arguments: argparse.Namespace) -> int:
    from cai_dist.constitution.diff import diff
    from cai_dist.constitution.load import load_constitution
    from cai_dist.constitution.show import headline

    before, after = load_constitution(arguments.source), load_constitution(arguments.other)
    _print(f"- {headline(before)}")
    _print(f"+ {headline(after)}")
    differences = diff(before, after)
    for line in (line for difference in differences for line in difference.lines()):
        _print(line)
    if not differences:
        _print("no difference")
    return EXIT_OK


def _print(line: str) -> None:
    """One line of text that comes from a file: what would steer a terminal is made visible."""
    from cai_dist.tracking.console import clean

    print(clean(line))
