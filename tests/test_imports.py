"""The direction of imports, and that what a page loads never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("dcaecore", "store", "core", "pages")
ALLOWED = {"dcaecore": {"dcaecore"}, "store": {"store"}, "core": {"core", "store", "dcaecore"}}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package):
    for path in (ROOT / package).rglob("*.py"):
        found = imports_of(path)
        assert found & set(OURS) <= ALLOWED[package], path
        assert "streamlit" not in found, path
        if package == "store":
            assert "torch" not in found, path
        if "mirror" not in str(path.relative_to(ROOT)):
            assert "wandb" not in found, path


@pytest.mark.parametrize(
    "module", ["dcaecore", "dcaecore.cost", "dcaecore.zoo", "store", "core.model_manager", "core.specs", "core.views"]
)
def test_the_service_never_imports_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("page", [ROOT / "Home.py", *sorted((ROOT / "pages").glob("*.py"))], ids=lambda path: path.name)
def test_a_page_has_no_string_that_streamlit_would_show(page):
    """Streamlit's magic writes expressions that stand alone, but for a file's docstring."""
    lone = [node.value.value for node in ast.parse(page.read_text()).body[1:]
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]  # fmt: skip
    assert lone == []


def test_the_public_surface_of_dcaecore_resolves():
    import dcaecore

    for name in dcaecore.__all__:
        assert getattr(dcaecore, name) is not None
    with pytest.raises(AttributeError):
        _ = dcaecore.nothing_like_this


def test_every_setting_stands_in_the_example():
    from core.settings import Settings

    written = {line.split("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    assert written == {f"OFFSHOOT_{name.upper()}" for name in Settings.model_fields}
