"""The notebook runs from top to bottom, with fewer pictures and epochs."""

import json
from pathlib import Path


NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"
SHORT = 'sizes = {"train": 10, "validation": 5, "test": 5}\nepochs = 1'


def code_cells():
    """The source of each code cell, and whether it is the one of the parameters."""
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"]), "parameters" in cell["metadata"].get("tags", ())


def test_it_is_small_and_has_no_outputs():
    assert NOTEBOOK.stat().st_size < 100_000
    assert not any(cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


def test_its_cells_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, (source, are_parameters) in enumerate(code_cells()):
        exec(compile(SHORT if are_parameters else source, f"cell {number}", "exec"), names)
    assert names["dataset"].num_rows == names["sizes"] == {"train": 10, "validation": 5, "test": 5}
    assert names["answer"]["label"] in names["labels"]
    assert names["answer"]["saliency"].shape == (names["picture"].height, names["picture"].width)
    assert 0 <= names["agreement"]["iou"] <= 1 and names["agreement"]["n"] == 5
    assert (tmp_path / "megl-trained" / "config.json").is_file()
    assert "IoU of the maps" in capsys.readouterr().out
