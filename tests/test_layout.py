"""Where things stand: what may import what, and what is installed."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
# Each may import those before it, and itself; nothing imports a script.
LAYERS = {
    "modeling_megl": 0,
    "dataset_builders": 0,
    "metrics": 0,
    "megl": 1,
    "scripts": 2,
    "studies": 2,
    "benchmarks": 2,
    "examples": 2,
}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    """The top-level folder of an imported module, or `None` of others'."""
    for installed, folder in (("megl.scripts", "scripts"), ("megl.metrics", "metrics")):
        if name == installed or name.startswith(f"{installed}."):
            return folder
    top = name.partition(".")[0]
    return top if top in LAYERS else None


@pytest.mark.parametrize("folder", LAYERS)
def test_arrows_run_down_only(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            found = room(name)
            if found is not None and found != folder:
                assert LAYERS[found] < LAYERS[folder], f"{file.relative_to(ROOT)} imports {name}"


def test_test_files_stand_alone():
    for file in (ROOT / "tests").glob("*.py"):
        names = list(imports(file))
        assert not [name for name in names if name.startswith("test_")], file.name


def test_the_card_that_is_installed_is_the_card_at_the_top():
    """The programs read the one, and who looks for the template finds the other."""
    assert (ROOT / "megl" / "evaluation" / "model_card.md").read_bytes() == (ROOT / "model_card.md").read_bytes()
