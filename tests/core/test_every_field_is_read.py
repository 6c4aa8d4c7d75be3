"""An option that is accepted and ignored is a lie: each field of each operation's spec is read by code that takes such a spec."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from core import specs

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"RetrainSpec": set(specs.RetrainSpec.model_fields), "BranchSpec": {"training"}}
"""A retraining hands its whole spec on; `test_retrain_fields` shows of each field what it changes. A branch keeps the settings of the
training for its id alone."""
SPECS = {cls.__name__: cls for cls in vars(specs).values() if isinstance(cls, type) and issubclass(cls, specs.Spec)}


def reads() -> dict[str, set[str]]:
    """Attributes read of values that are annotated as a spec, by the name of the spec's class, over all of `core`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "core").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            typed = {a.arg: ast.unparse(a.annotation) for a in [*function.args.args, *function.args.kwonlyargs] if a.annotation}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in typed:
                    for name in SPECS:
                        if name in typed[node.value.id]:
                            found[name].add(node.attr)
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in SPECS):
            for node in ast.walk(cls):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    found[cls.name].add(node.attr)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    return reads()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_field_is_read(found: dict[str, set[str]], name: str) -> None:
    assert set(SPECS[name].model_fields) - found[name] - ELSEWHERE.get(name, set()) == set()
