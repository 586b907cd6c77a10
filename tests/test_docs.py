"""The pages say what the code says: the reference, the messages that are quoted, and the links."""

import re
from pathlib import Path

import datasets.load
import pytest
import transformers.dynamic_module_utils

from docs.make_reference import FILE, anchor, markdown, reference


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("modeling_megl", "dataset_builders", "megl", "scripts", "metrics")


def test_the_reference_is_what_the_code_says():
    assert FILE.read_text(encoding="utf-8") == reference(), "run `make reference`"


def test_a_docstring_as_markdown():
    text = "Sums [`~Map.rows`].\n\nArgs:\n    maps (`list`):\n        All of them.\n\nReturns:\n    `int`: the sum.\n"
    text += "\nRaises:\n    `ValueError`: where there\n    are none.\n"
    assert markdown(text) == (
        "Sums `Map.rows`.\n\n**Args:**\n\n- `maps` (`list`):\n  All of them.\n\n**Returns:**\n\n`int`: the sum."
        "\n\n**Raises:**\n\n- `ValueError`: where there\n  are none."
    )


def test_messages_that_are_quoted_are_those_of_the_code():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    files += [Path(module.__file__) for module in (datasets.load, transformers.dynamic_module_utils)]
    joined = (re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in files)
    code = "\n".join(joined)
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    symptoms = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    quoted = [text for symptom in symptoms for text in re.findall(r"`([^`]+)`", symptom)]
    assert len(quoted) > 30
    assert not [text for text in quoted if text not in code]


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {anchor(re.sub(r"[^\w\- ]", "", heading)) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, name = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not name or name in anchors(found), target
