"""The notebooks run from top to bottom, with fewer pictures and epochs."""

import json
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def code_cells(name):
    """The code cells of a notebook, with their sources as text."""
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def run_cells(name, short):
    """The names that a notebook leaves, with other parameters."""
    names = {}
    for number, cell in enumerate(code_cells(name)):
        source = short if "parameters" in cell["metadata"].get("tags", ()) else cell["source"]
        exec(compile(source, f"{name}, cell {number}", "exec"), names)
    return names


def test_they_are_small_and_one_shows_its_outputs():
    assert not any(cell["outputs"] for cell in code_cells("quickstart.ipynb"))
    shown = json.dumps([cell["outputs"] for cell in code_cells("own_data.ipynb")])
    assert shown.count("where misled") == 2 and shown.count("image/jpeg") == 2
    assert "/home/" not in shown and "/tmp/" not in shown and '"error"' not in shown
    assert all(path.stat().st_size < 100_000 for path in EXAMPLES.glob("*.ipynb"))


def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_cells("quickstart.ipynb", 'sizes = {"train": 10, "validation": 5, "test": 5}\nepochs = 1')
    assert names["dataset"].num_rows == names["sizes"] == {"train": 10, "validation": 5, "test": 5}
    assert names["answer"]["label"] in names["labels"]
    assert names["answer"]["saliency"].shape == (names["picture"].height, names["picture"].width)
    assert 0 <= names["agreement"]["iou"] <= 1 and names["agreement"]["n"] == 5
    assert (tmp_path / "megl-trained" / "config.json").is_file()
    assert "IoU of the maps" in capsys.readouterr().out


def test_own_pictures_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    names = run_cells("own_data.ipynb", "pictures, each, held_out, epochs = 8, 2, 4, 1")
    masks = [mask is not None for mask in names["open_table"]("garden", "train")["visual_explanation"]]
    assert names["labels"] == ["fish", "house"] and sum(masks) == 4
    assert (tmp_path / "garden-2" / "config.json").is_file()
    assert capsys.readouterr().out.count("where misled") == 2
