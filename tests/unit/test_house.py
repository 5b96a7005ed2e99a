"""Limits that keep the code readable: a function fits on a screen, and its call on a line."""

import ast
from pathlib import Path

from tests.typed import known

ROOT = Path(__file__).parents[2]
PACKAGES = ("ehr", "services", "actors", "training", "benchmarks")
MAX_LINES = 60
"""From `def` to the last line, with the docstring."""
MAX_PARAMETERS = 8
"""Without self; past that, what belongs together is a dataclass."""


def functions():
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def num_parameters(node):
    found = node.args
    named = [*found.posonlyargs, *found.args, *found.kwonlyargs]
    others = [each for each in (found.vararg, found.kwarg) if each is not None]
    return len([each for each in named if each.arg not in ("self", "cls")]) + len(others)


def test_no_function_is_longer_than_a_screen():
    long = {name: known(node.end_lineno) - node.lineno + 1 for name, node in functions()}

    assert len(long) > 1000
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_no_function_has_more_parameters_than_one_can_hold_in_mind():
    taken = {name: num_parameters(node) for name, node in functions()}

    assert {name: number for name, number in taken.items() if number > MAX_PARAMETERS} == {}
