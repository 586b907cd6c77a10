"""What a page is made of, from a command line; and the same as the folder of a Space of the Hub."""

import json
import shutil
import sys
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import torch
import yaml
from datasets import Image
from huggingface_hub import ModelCard
from transformers.utils.hub import cached_file, extract_commit_hash

from megl.evaluation.predictions import why_untaught
from megl.publishing import model_files
from megl.tables import evenly_spaced, load_split
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import one_line, read_config

from .answers import Explainer


CODE = ("__init__.py", "answers.py", "drawing.py", "guard.py", "page.py")
ASKED = ("explain_pixels", "probabilities", "read_explanations")  # of a model, by the page
SPLITS = ("test", "validation", "train")  # the first that there is
APP = '''"""The page of this Space."""

from pathlib import Path

from demo.page import serve_space


serve_space(Path(__file__).resolve().parent)
'''


def load_explainer(name, trust_remote_code=False):
    """
    The [`Explainer`] of a Hub id or folder; errors are those of `from_pretrained`.

    Args:
        name (`str`): A MEGL model, whole or as adapters.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether its vision model may run its own code.
    """
    processor = MeglProcessor.from_pretrained(name)
    model = MeglForImageClassification.from_pretrained(name, trust_remote_code=trust_remote_code).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    return Explainer(shown, model, processor, why_untaught(name) is None)


def write_examples(name, folder, explainer, count=6):
    """
    Some pictures of a data set, evenly spaced over it, as files.

    Args:
        name (`str`): Hub id or folder of a data set, or a folder of pictures.
        folder (`Path`): Where to write `1.png`, `2.png`, …
        explainer ([`Explainer`]): What opens them.
        count (`int`): Of them at most.

    Returns:
        `list[Path]`

    Raises:
        `ValueError`: in one line, where it is no data set of pictures, or one of them cannot be read.
    """
    splits = (load_split(name, split, optional=True) for split in SPLITS)
    rows = next((rows for rows in splits if rows is not None and len(rows)), None)
    columns = [] if rows is None else [key for key, feature in rows.features.items() if isinstance(feature, Image)]
    if not columns:
        raise ValueError(f"`--examples` must be a data set or a folder with pictures, in one of {SPLITS}, got {name}.")
    rows = rows.select_columns(columns[:1]).cast_column(columns[0], Image(decode=False))
    paths = []
    for number, place in enumerate(evenly_spaced(count, len(rows)), 1):
        stored = rows[place][columns[0]]
        try:
            picture = explainer.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"]))
        except ValueError as error:
            raise ValueError(f"`--examples`: row {place} of {name}: {one_line(error)}") from error
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    return paths


def write_space(folder, names, explainers, examples):
    """
    A folder that is a Space: the page, its requirements and examples, and the models, as copies of what their
    repositories need where they are folders, and by id and revision where they are on the Hub.

    Args:
        folder (`Path`): An empty folder.
        names (`list[str]`), explainers (`list[Explainer]`): The models, as they were named and as they were loaded.
        examples (`list[Path]`): Files of pictures.

    Raises:
        `ValueError`: where the code of a model is older than the page, which runs it.
    """
    for name in names:
        _check_code(name)
    (folder / "demo").mkdir()
    for name in CODE:
        shutil.copyfile(Path(__file__).with_name(name), folder / "demo" / name)
    (folder / "app.py").write_text(APP, encoding="utf-8")
    (folder / "examples").mkdir()
    for path in examples:
        shutil.copyfile(path, folder / "examples" / path.name)
    models = [
        _place_model(folder, *pair, number) for number, pair in enumerate(zip(names, explainers, strict=True), 1)
    ]
    settings = {"models": models, "examples": [f"examples/{path.name}" for path in examples]}
    (folder / "demo.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    packages = ["gradio", "transformers", "torch"]
    if any(read_config(name).get("text_adapter") for name in names):
        packages.append("peft")
    pinned = [f"{package}=={version(package).partition('+')[0]}\n" for package in packages]
    (folder / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
    (folder / "README.md").write_text(_card(names, models), encoding="utf-8")


def _check_code(name):
    path = cached_file(name, "modeling_megl.py", _raise_exceptions_for_missing_entries=False)
    code = Path(path).read_text(encoding="utf-8") if path else ""
    missing = [method for method in ASKED if f"def {method}(" not in code]
    if missing:
        raise ValueError(
            f"`--space`: the code that lies with {name}, which a Space runs, has no `{missing[0]}`: it is of an older "
            "version. Load model and processor, and save both, with this one."
        )


def _place_model(folder, name, explainer, number):
    """Copy a model, where it is a folder; its entry in `demo.json`."""
    source, revision = f"model-{number}", None
    if Path(name).is_dir():
        for target, path in model_files(name, needs_card=False).items():
            (folder / source / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / source / target)
    else:
        source, revision = name, extract_commit_hash(cached_file(name, "config.json"), None)
    return {"name": explainer.name, "source": source, "revision": revision, "writes": explainer.writes}


def _card(names, models):
    """The README of a Space, with the front matter that the Hub reads."""
    verb = "sees" if len(models) == 1 else "see"
    title = f"What {' and '.join(model['name'] for model in models)} {verb}, and why"
    licenses = [license for license in map(_license, names) if license]  # each a text, or a list of them
    front = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [model["source"] for model in models if model["revision"]],
        "license": licenses[0] if licenses and licenses.count(licenses[0]) == len(licenses) else None,
    }
    front = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    about = "An image classifier that shows and says why: label, saliency map, rationale. Written by `megl demo`."
    return f"---\n{front}---\n\n{about}\n"


def _license(name):
    """What a model's card says, where there is one."""
    absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(name, "README.md", **absent)
    try:
        return path and ModelCard.load(path).data.license
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The card of {name} has no metadata that can be read: {one_line(error)}.") from error
