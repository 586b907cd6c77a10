"""Study files: YAML that names methods, architectures, data sets and seeds; read into cells, one training run each."""

import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import yaml

import evaluate_llava
import evaluate_megl
import init_megl
import train_llava
import train_megl


SCRIPTS = Path(__file__).resolve().parents[1]
# What a cell runs, one after another, for each `model_type`.
STEPS = {
    "megl": {
        "init": (SCRIPTS / "init_megl.py", init_megl.make_parser),
        "train": (SCRIPTS / "train_megl.py", train_megl.make_parser),
        "evaluate": (SCRIPTS / "evaluate_megl.py", evaluate_megl.make_parser),
    },
    "llava": {
        "train": (SCRIPTS / "train_llava.py", train_llava.make_parser),
        "evaluate": (SCRIPTS / "evaluate_llava.py", evaluate_llava.make_parser),
    },
}
# Options that follow from the cell's place in the study.
PLACED = {
    *("dataset", "output", "seed", "model_name_or_path", "dataset_name", "output_dir", "model", "split", "help"),
    *("train_split", "eval_split"),
}
# A cell is trained to its end, selects nothing on the way, and shows no pictures. A study may set these otherwise.
QUIET = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 50,
    "examples": 0,
}
SECTION = {
    "description",
    "split",
    "seeds",
    "reference",
    "baselines",
    "claims",
    "settings",
    "datasets",
    "architectures",
    "methods",
}
DATASET = {"path", "architectures", "settings", "methods"}
# The metrics of a study's tables and claims: name in `results.json` to its heading.
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_conflicting": "conflicting",
    "worst_group_accuracy": "worst group",
    "iou": "IoU",
    "pointing_game": "pointing",
    "energy": "energy",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "clip_score": "CLIPScore",
    "kind_accuracy": "kind",
    "colour_accuracy": "colour",
    "place_accuracy": "place",
    "shuffled_place_accuracy": "place, shuffled",
}
# What a claim may be over besides a method: the one of `baselines` with the highest mean at the claim's metric.
BEST_BASELINE = "best baseline"
CLAIM = {"method", "over", "metric", "gain", "ratio"}
DIMENSIONS = ("dataset", "architecture", "method", "seed")


@dataclass(frozen=True)
class Cell:
    """One run: a model made, trained and evaluated."""

    dataset: str
    architecture: str
    method: str
    seed: int
    path: str  # of the data set
    split: str
    settings: dict

    @property
    def key(self):
        """
        Names the run by what decides its outcome: all settings, and of local files their names and sizes, wherever
        they lie. What a method is called is no part of it: studies share runs.
        """
        settings = {
            name: fingerprint(value) if name in ("vision", "text", "clip") else value
            for name, value in self.settings.items()
        }
        content = {"settings": settings, "data": fingerprint(self.path), "seed": self.seed, "split": self.split}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.dataset}-{self.architecture}-{self.seed}-{digest[:12]}"

    @property
    def steps(self):
        """Step to its script and what makes the script's parser."""
        return STEPS[model_type(self.settings)]

    @property
    def title(self):
        return f"{self.dataset}, {self.architecture}, {self.method}, seed {self.seed}"

    def commands(self, folder):
        """Step to the arguments of its script, for a run in `folder`: those settings that the script has."""
        untrained, model, evaluation = folder / "untrained", folder / "model", folder / "evaluation"
        placed = {
            "init": {"dataset": self.path, "output": untrained, "seed": self.seed},
            "train": {"model_name_or_path": untrained, "dataset_name": self.path, "output_dir": model}
            | {"seed": self.seed},
            "evaluate": {"model": model, "dataset": self.path, "split": self.split, "output": evaluation},
        }
        if self.settings.get("text_loss_weight") == 0:
            placed["evaluate"]["max_new_tokens"] = 1  # an untrained language model writes noise, and much of it
        return {
            step: to_arguments(options(parser), {**QUIET, **self.settings, **placed[step]})
            for step, (_, parser) in self.steps.items()
        }


@cache
def fingerprint(path):
    """Names and sizes of the files of a local folder, but its card, or file; a Hub id as it is."""
    path = Path(path)
    if not path.exists():
        return str(path)
    files = (
        sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
        if path.is_dir()
        else [path]
    )
    lines = [f"{file.relative_to(path)} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def model_type(settings):
    """Whose scripts run: MEGL's, unless a setting says otherwise."""
    return settings.get("model_type", "megl")


@cache
def options(make_parser):
    """The options of a script: name to argparse's action."""
    return {action.dest: action for action in make_parser()._actions}


def to_arguments(actions, settings):
    """Those of the settings that a script has options for, as its command line."""
    arguments = []
    for name, action in actions.items():
        value = settings.get(name)
        if value is None or (action.nargs == 0 and value is False):
            continue
        arguments += [f"--{name}"] if action.nargs == 0 else [f"--{name}", str(value)]
    return arguments


def read_study(path, section, overrides=()):
    """
    One section of a study file. What it lacks is taken from the same section of the file that its `base` names.

    Args:
        path (`str` or `Path`): The YAML file.
        section (`str`): Its section, such as `small`.
        overrides (`list[str]`): `a.b=value` puts a value, in YAML, in place of the file's.

    Raises:
        ValueError: where the file is no study, or names what does not exist.
    """
    content = _read_yaml(path)
    base = _read_yaml(Path(path).parent / content["base"]) if "base" in content else {}
    if section not in content:
        there = ", ".join(name for name in content if name != "base")
        raise ValueError(f"{path} has no section `{section}`, but {there}: choose one by `--section`.")
    study = {**base.get(section, {}), **content[section]}
    for override in overrides:
        _override(study, override)
    _known(study, SECTION, f"{path}, {section}")
    for name in ("datasets", "architectures", "methods", "seeds"):
        if not study.get(name):
            raise ValueError(f"{path}, {section}: `{name}` is missing or empty.")
    return study


def _read_yaml(path):
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content[name], dict) for name in content if name != "base"):
        raise ValueError(f"{path} is no study: expected sections, such as `small:`, with a study in each.")
    return content


def _override(study, override):
    place, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"`--set` takes NAME=VALUE, such as datasets.photographs.path=photographs, got {override!r}.")
    *parents, name = place.split(".")
    part = study
    for parent in parents:
        if not isinstance(part, dict) or not isinstance(part.get(parent), dict):
            raise ValueError(f"`--set {override}`: the study has no `{place}`: `{parent}` is not in it.")
        part = part[parent]
    part[name] = yaml.safe_load(value)


def _known(part, names, place):
    """Refuse what is none of the names, with the nearest of them."""
    for name in part:
        if name not in names:
            near = difflib.get_close_matches(str(name), [str(known) for known in names], n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"expected {', '.join(sorted(map(str, names)))}."
            raise ValueError(f"{place}: unknown `{name}`: {hint}")


def make_cells(study, place, only):
    """
    The cells of a study, in the order in which they are run: all methods with the first seed come first.

    Args:
        study (`dict`): What `read_study` gives.
        place (`str`): The file and section, for errors.
        only (`dict[str, list[str]]`): Dimension (`dataset`, `architecture`, `method`, `seed`) to the names
            to keep.
    """
    methods = expand(study["methods"])
    names = {"dataset": study["datasets"], "architecture": study["architectures"], "method": methods}
    names["seed"] = [str(seed) for seed in study["seeds"]]
    for name in (*study["datasets"], *study["architectures"]):
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(f"{place}: {name!r} names folders: only letters, digits and `._+-` may be in it.")
    _known(study.get("baselines") or [], methods, f"{place}, `baselines`")
    _known([study["reference"]] if study.get("reference") else [], methods, f"{place}, `reference`")
    check_claims(study.get("claims") or [], methods, f"{place}, `claims`")
    for dimension, kept in only.items():
        _known([dimension], DIMENSIONS, "`--only`")
        _known(kept, names[dimension], f"`--only {dimension}=…`")
    cells = []
    for dataset, data in study["datasets"].items():
        data = data or {}
        _known(data, DATASET, f"{place}, datasets.{dataset}")
        _known(data.get("architectures") or [], study["architectures"], f"{place}, datasets.{dataset}.architectures")
        _known(data.get("methods") or {}, study["methods"], f"{place}, datasets.{dataset}.methods")
        for architecture in data.get("architectures") or study["architectures"]:
            for method, (base, settings) in methods.items():
                found = {"dataset": dataset, "architecture": architecture, "method": method}
                if any(found.get(dimension, kept[0]) not in kept for dimension, kept in only.items()):
                    continue
                check_path(data.get("path"), dataset, place)
                merged = {
                    **(study.get("settings") or {}),
                    **(data.get("settings") or {}),
                    **study["architectures"][architecture],
                    **settings,
                    **((data.get("methods") or {}).get(base) or {}),
                }
                common = {"path": str(data["path"]), "split": study.get("split", "test")}
                common["settings"] = check_settings(merged, f"{place}, {dataset}, {architecture}, method `{method}`")
                cells += [
                    Cell(**found, seed=seed, **common)
                    for seed in study["seeds"]
                    if str(seed) in only.get("seed", [str(seed)])
                ]
    return sorted(cells, key=lambda cell: study["seeds"].index(cell.seed))


def check_claims(claims, methods, place):
    """Refuse a claim that is not `{method, over, metric, gain}` or, instead of the gain, `ratio`."""
    for claim in claims:
        _known(claim, CLAIM, place)
        missing = CLAIM - {"gain", "ratio"} - set(claim)
        bar = [claim[name] for name in ("gain", "ratio") if name in claim]
        if missing or len(bar) != 1 or isinstance(bar[0], bool) or not isinstance(bar[0], (int, float)):
            raise ValueError(
                f"{place}: expected `method`, `over`, `metric`, and a number as `gain` or `ratio`, got {claim}."
            )
        _known([claim["method"]], methods, place)
        _known([claim["over"]], [*methods, BEST_BASELINE], place)
        _known([claim["metric"]], COLUMNS, place)


def check_path(path, dataset, place):
    """Refuse a data set that is neither a folder nor a Hub id, which has one slash."""
    advice = f"give it by `--set datasets.{dataset}.path=FOLDER`, or choose others by `--only dataset=…`."
    if not path:
        raise ValueError(f"{place}: the data set `{dataset}` has no `path`: {advice}")
    if not Path(path).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise ValueError(f"{place}: the `path` of the data set `{dataset}`, {path}, is no folder: {advice}")


def expand(methods):
    """Methods, where a setting that is a list makes one of each value: name to `(name in the file, settings)`."""
    expanded = {}
    for method, settings in methods.items():
        settings = settings or {}
        varied = [name for name, value in settings.items() if isinstance(value, list)]
        for values in itertools.product(*(settings[name] for name in varied)):
            chosen = dict(zip(varied, values, strict=True))
            name = " ".join([method, *(f"{key}={value}" for key, value in chosen.items())])
            expanded[name] = (method, {**settings, **chosen})
    return expanded


def check_settings(settings, place):
    """
    The settings as the scripts understand them, without those of other model types. What no script has, or its own
    does not take, is refused.
    """
    for name in settings:
        if name in PLACED:
            raise ValueError(f"{place}: the study itself sets `{name}`: leave it out of the settings.")
    parsers = [parser for steps in STEPS.values() for _, parser in steps.values()]
    _known(settings, {"model_type"}.union(*map(options, parsers)) - PLACED, place)
    _known([model_type(settings)], STEPS, f"{place}, `model_type`")
    parsed = {name: settings[name] for name in ("model_type",) if name in settings}
    cell = Cell("", "", "", 0, "data", "test", settings)
    for step, arguments in cell.commands(Path("cell")).items():
        parser = cell.steps[step][1]()
        parser.error = partial(_refuse, place)
        parsed |= vars(parser.parse_args(arguments))
    return {name: parsed[name] for name, value in settings.items() if value is not None and name in parsed}


def _refuse(place, message):
    raise ValueError(f"{place}: {message}")
