"""The pages of published cells: the shipped ones of one study, and numbers in words."""

import re
import shutil
from pathlib import Path

import pytest

from studies import cells, figures, findings, publish
from studies import results as study_results


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tap(tmp_path_factory):
    """All sections of all studies where the cells of the study tap are the only ones."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "cells").mkdir()
    shutil.copy(ROOT / "docs" / "cells" / "tap.parquet", folder / "cells")
    return publish.read_published(folder / "cells", folder / "run")


def test_shipped_pages_are_those_of_the_shipped_cells(tap):
    pages = publish.appendix(tap)
    assert set(pages) == {"tap.md", "README.md"}
    assert pages["tap.md"] == (ROOT / "docs" / "appendix" / "tap.md").read_text(encoding="utf-8")
    run, not_run = pages["README.md"].split("## Not run")
    assert "| [tap](tap.md) | sample vit-tiny |" in run and "| [paper]" not in run
    assert "- `studies/tap.yaml`, section `full`" in not_run and "`studies/tap.yaml`, section `small`" not in not_run
    shipped = (ROOT / "docs" / "appendix" / "README.md").read_text(encoding="utf-8")
    assert "- `studies/rationales.yaml`, section `small`" in shipped.split("## Not run")[1]


def test_the_page_of_results_is_short_and_has_its_figures():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.startswith(publish.NOTE) and len(page.splitlines()) <= 165
    figures = {file.name for file in (ROOT / "docs" / "figures").iterdir()} - {"own_pictures.png"}  # of data.md
    assert set(re.findall(r"\(figures/([^)]+)\)", page)) == figures


def test_a_page_needs_the_studies_that_it_speaks_of(tap):
    with pytest.raises(ValueError, match="the page needs the study paper on .*, of which no cell is published"):
        publish.render(findings.Findings(tap))
    with pytest.raises(ValueError, match="nowhere has no cells: `python -m studies.compare … --publish` puts them"):
        publish.read_published(Path("nowhere"), Path("run"))


def test_words_of_the_numbers(tap):
    page = findings.Findings(tap)
    group = page.group("tap", "sample, ViT")
    accuracy = {method: values["accuracy"] for method, values in group.values.items()}
    assert page.mean("sample, ViT", "plain", "accuracy", "tap") == f"{accuracy['plain'][0]:.3f}"
    test = group.difference("gradia", "plain", "accuracy")
    low, high = (100 * end for end in test.interval())
    expected = f"{100 * test.mean:+.1f} points ({low:+.1f} to {high:+.1f})".replace("-", "−")
    assert low < 0 and page.gain("sample, ViT", "gradia", "plain", "accuracy", "tap") == expected
    assert page.ratio("sample, ViT", "gradia", "plain", "iou", "tap").startswith("× ")

    assert findings._gain_text("iou", -0.0001, [-0.0004, 0.0102]) == "+0.000 (0.000 to 0.010)"
    assert findings._gain_text("accuracy", -0.064, [-0.084, -0.044]) == "−6.4 (−8.4 to −4.4)"
    claim = {"method": "megl", "over": "best baseline", "metric": "iou", "no_worse_than": 0.02}
    check = {
        "claim": claim,
        "over": "haics",
        "found": 0.036,
        "interval": [0.023, 0.049],
        "p": 1e-5,
        "verdict": "holds",
    }
    assert findings._verdict(check) == "**holds**<br>+0.036<br>(0.023 to 0.049)<br>p < 0.001<br>HAICS"
    assert findings._verdict({**check, "interval": None, "verdict": "undecided"}) == "undecided"
    assert findings._verdict(None) == "not run" and findings.asked(claim) == "at most 0.02 worse"
    assert findings.asked({"metric": "accuracy", "gain": 0.1}) == "at least +10 points"
    assert findings.asked({"metric": "iou", "ratio": 1.6}) == "at least × 1.6"
    assert findings.name_of("res_g and text mask_share=0.05") == "RES-G and rationales, 5 % of the masks"


def test_lines_are_filled_anew_but_for_tables():
    word = "word " * 30
    assert publish._filled(f"{word}\nend") == f"{('word ' * 24).strip()}\n{('word ' * 6).strip()} end"
    filled = publish._filled(f"- a\n  b\n- {word}").splitlines()
    assert filled[0] == "- a b" and filled[1].startswith("- word") and filled[2].startswith("  word")
    assert publish._filled(f"| {word} |") == f"| {word} |"


def test_figures_are_the_same_each_time(tap):
    groups = [findings.Findings(tap).group("tap", "sample, ViT")]
    for make in (figures.forest, figures.accuracy_against_iou):
        first, second = (figures.draw(lambda make=make: make(groups)) for _ in range(2))
        assert first == second and b"sample, ViT" in first and b"GRADIA" in first and b"<dc:date>" not in first
    pictures = figures.draw(figures.sample_pictures)
    assert pictures.startswith(b"\x89PNG") and pictures == figures.draw(figures.sample_pictures)


def test_a_study_without_a_file_of_its_own_shows_nothing(tap):
    """Though it shares cells with others."""
    assert [one.name for one in tap if one.groups] == ["tap"]
    assert cells.published_cells(ROOT / "docs" / "cells").keys() >= {run.folder.name for run in _runs(tap)}


def test_a_method_that_lacks_all_cells_of_its_own_is_not_shown():
    """As one that differs from another by its second seed alone, of which nothing was run."""
    a, b, c = (study_results.Run(Path(name), "method", 0, {}) for name in "abc")
    runs = {"one draw": [a, b], "draws": [a], "same by another name": [a, b], "other": [c]}
    assert list(publish._without_borrowed(runs)) == ["one draw", "same by another name", "other"]


def _runs(published):
    return [run for one in published for group in one.groups for runs in group.runs.values() for run in runs]
