"""Makes the pages of the published cells: `FOLDER/appendix`, `FOLDER/figures` and `FOLDER/results.md`.

```
python -m studies.publish
python -m studies.publish --docs docs
```

It needs neither data nor models: cells are known by their settings. The words of results.md are in
`studies/results_page.md`, its numbers come from the cells.
"""

import argparse
import json
import re
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from dataset_builders.files import write_file
from studies import figures
from studies.cells import RECORD, fetch_cells, published_cells
from studies.findings import Findings
from studies.results import markdown, read_groups
from studies.study import FILES, make_cells, model_type, read_study, study_name


FOLDER = Path(__file__).resolve().parent
BASE = "common.yaml"
NOTE = "<!-- Made by `python -m studies.publish` from the published cells: change it there. -->\n\n"


@dataclass
class Published:
    """A section of a study file, and the groups that were run."""

    name: str
    file: str
    section: str
    study: dict
    groups: list


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", default="docs", help="folder with `cells`, to write the pages into")
    return parser.parse_args()


def read_published(cells, folder):
    """
    Every section of every study file, as [`Published`].

    Args:
        cells (`Path`): The folder of Parquet files.
        folder (`Path`): A folder for the cells, which are read while the results are in use.
    """
    files = published_cells(cells)
    if not files:
        raise ValueError(f"{cells} has no cells: `python -m studies.compare … --publish` puts them there.")
    fetch_cells(files, cells, folder)
    records = [json.loads((folder / key / RECORD).read_text(encoding="utf-8")) for key in files]
    names = ("dataset", "architecture", "seed", "split", "settings")
    keys = {identity(*(record[name] for name in names)): record["key"] for record in records}
    found = []
    for file in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for section in sorted(set(content) - {"base"}, reverse=True) if file.name != BASE else ():
            study, name = read_study(file, section), study_name(file, section)
            for data in study["datasets"].values():
                data["path"] = "any/where"  # no folder is asked for: only their settings matter
            places = [
                (cell, folder / keys.get(identity(*(getattr(cell, name) for name in names)), "not run"))
                for cell in make_cells(study, f"{file.name}, {section}", {})
            ]
            groups = [group for group in read_groups(study, places) if _is_shown(group, files, name)]
            for group in groups:
                group.runs = _without_borrowed(group.runs)
            found.append(Published(name, file.name, section, study, groups))
    return found


def _is_shown(group, files, name):
    """Whether the study has run it: a study that shares cells has some of them on data that it was never run on."""
    if name not in {file.stem for file in files.values()}:
        return False
    runs = [run for runs in group.runs.values() for run in runs]
    return len(runs) >= group.count / 3 or any(files[run.folder.name].stem == name for run in runs)


def _without_borrowed(runs):
    """Without methods of which nothing was run but what is another's: where only its other seeds make it differ."""
    keys = {method: {run.folder for run in of_method} for method, of_method in runs.items()}
    return {method: runs[method] for method, own in keys.items() if not any(own < others for others in keys.values())}


def identity(dataset, architecture, seed, split, settings):
    """What names a cell wherever its data and models lie. A LLaVA takes nothing of an architecture but settings."""
    settings = {name: Path(value).name if name in FILES else value for name, value in settings.items()}
    if model_type(settings) == "llava":
        architecture = None
    return dataset, architecture, seed, split, json.dumps(settings, sort_keys=True)


def appendix(studies):
    """File name to text: a page of tables for each study that was run, and an index that names those that were not."""
    pages = {f"{one.name}.md": NOTE + markdown(one.study, one.name, one.groups) for one in studies if one.groups}
    lines = ["# Tables of the studies", "", "| study | on | asks |", "|---|---|---|"]
    for one in studies:
        if one.groups:
            where = ", ".join(f"{group.dataset} {group.architecture}" for group in one.groups)
            lines.append(f"| [{one.name}]({one.name}.md) | {where} | {one.study['description'].strip()} |")
    lines += [
        "",
        "## Not run",
        "",
        "Nobody has run these; the settings of `full` were tuned on nothing.",
        "",
    ]
    lines += [f"- `studies/{one.file}`, section `{one.section}`" for one in studies if not one.groups]
    return {**pages, "README.md": NOTE + "\n".join(lines) + "\n"}


def draw_figures(findings):
    """File name to content."""
    convolutional, transformers = (
        [findings.group("paper", place) for place in places]
        for places in (figures.CONVOLUTIONAL, figures.TRANSFORMERS)
    )
    drawn = {
        "sample.png": figures.sample_pictures,
        "differences.svg": lambda: figures.forest(convolutional),
        "interventions.svg": lambda: figures.interventions(
            [findings.group("interventions", place) for place in figures.RECOMBINED]
        ),
        "accuracy_iou.svg": lambda: figures.accuracy_against_iou([*convolutional, *transformers]),
        "masks.svg": lambda: figures.shares_of_masks(findings.group("masks", "photographs, frozen")),
    }
    return {name: figures.draw(make) for name, make in drawn.items()}


def render(findings):
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((FOLDER / "results_page.md").read_text(encoding="utf-8"))
    blocks = template.render(findings.words()).strip().split("\n\n")
    return NOTE + "\n\n".join(_filled(block.strip()) for block in blocks if block.strip()) + "\n"


def _filled(block):
    """A paragraph or a list with its lines filled anew, since numbers have come into them; all else as it is."""
    if block[0] in "#|!":
        return block
    items = re.split(r"\n(?=- )", block)
    indent = "  " if block.startswith("- ") else ""
    lines = [" ".join(item.split()) for item in items]
    return "\n".join(textwrap.fill(line, 119, subsequent_indent=indent, break_on_hyphens=False) for line in lines)


def main():
    docs = Path(parse_arguments().docs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            studies = read_published(docs / "cells", Path(folder))
            findings = Findings(studies)
            texts = {f"appendix/{name}": text for name, text in appendix(studies).items()}
            texts["results.md"] = render(findings)
            drawn = draw_figures(findings)
    except (ValueError, OSError, jinja2.UndefinedError) as error:
        sys.exit(f"publish: {error}")
    for name, text in texts.items():
        write_file(docs / name, text)
    for old in (docs / "appendix").glob("*.md"):
        if f"appendix/{old.name}" not in texts:
            old.unlink()
    (docs / "figures").mkdir(exist_ok=True)
    for name, content in drawn.items():
        (docs / "figures" / name).write_bytes(content)


if __name__ == "__main__":
    main()
