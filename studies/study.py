"""Study files: YAML that names methods, architectures, data sets and seeds; read into cells, one training run each."""

import difflib
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path

import yaml
from transformers import TrainingArguments

from megl.arguments import ColumnArguments, EvaluateArguments, InitArguments, TrainArguments
from megl.parser import CommandParser
from modeling_megl.training_arguments_megl import MeglTrainingArguments
from studies.llava.arguments import LlavaEvaluateArguments, LlavaTrainArguments


# What a cell runs, one after another, for each `model_type`: the program, and the dataclasses of what it takes.
STEPS = {
    "megl": {
        "init": ("megl.scripts.init_megl", (InitArguments, ColumnArguments)),
        "train": ("megl.scripts.train_megl", (TrainArguments, ColumnArguments, MeglTrainingArguments)),
        "evaluate": ("megl.scripts.evaluate_megl", (EvaluateArguments, ColumnArguments)),
    },
    "llava": {
        "train": ("studies.llava.train", (LlavaTrainArguments, ColumnArguments, TrainingArguments)),
        "evaluate": ("studies.llava.evaluate", (LlavaEvaluateArguments, ColumnArguments)),
    },
}
# Options that follow from the cell's place in the study.
PLACED = {
    *("dataset", "output", "seed", "model_name_or_path", "dataset_name", "output_dir", "model", "split", "help"),
    *("train_split", "eval_split"),
}
# A setting of the study alone: the folder of a trained model that `init` takes over, whose option `--model` is that of
# `evaluate` too.
TRAINED = "trained"
# Settings that may be local files: cells are known by what these hold, pages by their names.
FILES = ("vision", "text", "clip", TRAINED)
# A cell is trained to its end, selects nothing on the way, and shows no pictures. A study may set these otherwise.
QUIET = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 50,
    "examples": 0,
}
# What a run without the setting has, whatever the programs' defaults have become since: keys do not name it.
FIRST = {"evidence_layers": "none"}
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
LISTS, MAPPINGS = ("seeds", "baselines", "claims"), ("settings", "datasets", "architectures", "methods")
# The metrics of a study's tables and claims: name in `results.json` to its heading.
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_conflicting": "conflicting",
    "worst_group_accuracy": "worst group",
    "other_accuracy": "other background",
    "background_gap": "background gap",
    "object_alone_accuracy": "object alone",
    "background_alone_agreement": "kept, background alone",
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
# What a claim asks: a gain, a ratio, or to be no worse by a margin.
ASKED = ("gain", "ratio", "no_worse_than")
# Figures of a whole run, without a test over images: METEOR's program scores a corpus, and a minimum over groups is
# biased, more so the noisier the groups.
UNTESTED = ("meteor", "worst_group_accuracy")
CLAIM = {"method", "over", "metric", *ASKED}
# What the setting `share_seed` may be instead of a number: the seed of the cell.
SEED = "seed"
DIMENSIONS = ("dataset", "architecture", "method", "seed")
# In the card of a data set that the builders wrote.
CHECKSUM = re.compile(r"shards sha256 ([0-9a-f]{64})")


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
        Names the run by what decides its outcome: all settings, and of local files their names and contents, wherever
        they lie. What a method is called is no part of it: studies share runs. Nor does a LLaVA take more of an
        architecture than its settings: it is named by its vision model.
        """
        llava = model_type(self.settings) == "llava"
        name = Path(self.settings.get("vision", "llava")).name if llava else self.architecture
        settings = {name: fingerprint(value) if name in FILES else value for name, value in self.settings.items()}
        content = {"settings": settings, "data": fingerprint(self.path), "seed": self.seed, "split": self.split}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.dataset}-{name}-{self.seed}-{digest[:12]}"

    @property
    def steps(self):
        """Step to its program and the dataclasses of what that takes."""
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
        if TRAINED in self.settings:
            placed["init"]["model"] = self.settings[TRAINED]
        if self.settings.get("text_loss_weight") == 0:
            placed["evaluate"]["max_new_tokens"] = 1  # an untrained language model writes noise, and much of it
        return {
            step: to_arguments(options(kinds), {**QUIET, **FIRST, **self.settings, **placed[step]})
            for step, (_, kinds) in self.steps.items()
        }


@cache
def fingerprint(path):
    """
    What a local folder or file holds: the checksum of its shards where the card of a data set names it, as all that
    `prepare_dataset.py` writes do; else the names and contents of its files, but for a card and hidden ones. A Hub id
    as it is.
    """
    path = Path(path)
    if not path.exists():
        return str(path)
    if not path.is_dir():
        return _digest(path)
    card = path / "README.md"
    checksum = CHECKSUM.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    if checksum and (path / "data").is_dir():
        return checksum[1]
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file != card):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):  # what git and the Hub's client keep for themselves
            digest.update(f"{name.as_posix()} {_digest(file)}\n".encode())
    return digest.hexdigest()


def study_name(path, section):
    """What a study is called: its file, and a section other than `small`."""
    return Path(path).stem + ("" if section == "small" else f"-{section}")


def _digest(file):
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def model_type(settings):
    """Whose scripts run: MEGL's, unless a setting says otherwise."""
    return settings.get("model_type", "megl")


def options(kinds):
    """The names of the options that dataclasses make, in their order."""
    return [option.name for kind in kinds for option in fields(kind) if option.init]


def to_arguments(names, settings):
    """Those of the settings that a program has options for, as its command line."""
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    words = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [word for name in given for word in (f"--{name}", *map(str, words[name]))]


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
    check_shapes(study, f"{path}, {section}")
    return study


def check_shapes(study, place):
    """Refuse a list where a study has names with values under them, the other way round, and seeds that are none."""
    parts = {name: (study[name], list if name in LISTS else dict) for name in (*LISTS, *MAPPINGS) if study.get(name)}
    for name in ("datasets", "architectures", "methods"):
        if isinstance(study[name], dict):
            parts |= {f"{name}.{own}": (value, dict) for own, value in study[name].items() if value is not None}
    for dataset, data in study["datasets"].items() if isinstance(study["datasets"], dict) else ():
        kinds = {"architectures": list, "settings": dict, "methods": dict} if isinstance(data, dict) else {}
        parts |= {f"datasets.{dataset}.{own}": (data[own], kind) for own, kind in kinds.items() if data.get(own)}
    for name, (value, kind) in parts.items():
        if not isinstance(value, kind):
            words = "a list" if kind is list else "names with values under them"
            raise ValueError(f"{place}: expected {words} as `{name}`, got {value!r}.")
    seeds = study["seeds"]
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"{place}: expected different whole numbers, 0 or more, as `seeds`, got {seeds}.")


def _read_yaml(path):
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content[name], dict) for name in content if name != "base"):
        raise ValueError(f"{path} is no study: expected sections, such as `small:`, with a study in each.")
    return _apart(content)


def _apart(part):
    """A copy in which what YAML's `*name` repeats is there once for each place: one can be set without the others."""
    if isinstance(part, dict):
        return {name: _apart(value) for name, value in part.items()}
    return [_apart(value) for value in part] if isinstance(part, list) else part


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
    if not isinstance(part, dict):
        raise ValueError(f"`--set {override}`: the study has no `{place}`: there is {part!r} above it.")
    try:
        part[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"`--set {override}`: {value!r} is no YAML: {error}") from error


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
                    **(study["architectures"][architecture] or {}),
                    **settings,
                    **((data.get("methods") or {}).get(base) or {}),
                }
                common = {"path": str(data["path"]), "split": study.get("split", "test")}
                by_seed = settings_by_seed(
                    merged, study["seeds"], f"{place}, {dataset}, {architecture}, method `{method}`"
                )
                cells += [
                    Cell(**found, seed=seed, settings=settings, **common)
                    for seed, settings in by_seed.items()
                    if str(seed) in only.get("seed", [str(seed)])
                ]
    return sorted(cells, key=lambda cell: study["seeds"].index(cell.seed))


def check_claims(claims, methods, place):
    """Refuse a claim that is not `{method, over, metric, gain}` or, instead of the gain, another of `ASKED`."""
    for claim in claims:
        if not isinstance(claim, dict):
            raise ValueError(f"{place}: expected `{{method: …, over: …, metric: …, gain: …}}`, got {claim!r}.")
        _known(claim, CLAIM, place)
        missing = CLAIM - set(ASKED) - set(claim)
        bars = {name: claim[name] for name in ASKED if name in claim}
        if missing or len(bars) != 1 or not all(_is_bar(name, bar) for name, bar in bars.items()):
            raise ValueError(
                f"{place}: expected `method`, `over`, `metric`, and a number as `gain` or `ratio`, got {claim}; "
                "a ratio is above 0, and instead of them a margin, 0 or more, may stand as `no_worse_than`."
            )
        _known([claim["method"]], methods, place)
        _known([claim["over"]], [*methods, BEST_BASELINE], place)
        _known([claim["metric"]], COLUMNS, place)
        if claim["metric"] in UNTESTED:
            raise ValueError(f"{place}: `{claim['metric']}` has no test over images and seeds: claim another metric.")


def _is_bar(name, bar):
    if isinstance(bar, bool) or not isinstance(bar, (int, float)) or not math.isfinite(bar):
        return False
    return {"gain": True, "ratio": bar > 0, "no_worse_than": bar >= 0}[name]


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


def settings_by_seed(settings, seeds, place):
    """
    Seed to the settings of its cell. `share_seed: seed` is another draw of the items that keep their masks or
    rationales for each seed. A `share_seed` of 0 is left out: it draws what the scripts draw without it, so that the
    cell is the same.
    """
    follows = settings.get("share_seed") == SEED
    checked = check_settings({**settings, **({"share_seed": 0} if follows else {})}, place)
    if "share_seed" not in checked:
        return dict.fromkeys(seeds, checked)
    share_seed = checked.pop("share_seed")
    shares = {seed: seed if follows else share_seed for seed in seeds}
    return {seed: {**checked, **({"share_seed": share} if share else {})} for seed, share in shares.items()}


def check_settings(settings, place):
    """
    The settings as the scripts understand them, without those of other model types. What no script has, or its own
    does not take, is refused.
    """
    for name in settings:
        if name in PLACED:
            raise ValueError(f"{place}: the study itself sets `{name}`: leave it out of the settings.")
    programs = [kinds for steps in STEPS.values() for _, kinds in steps.values()]
    own = {"model_type", TRAINED}
    _known(settings, own.union(*map(options, programs)) - PLACED, place)
    _known([model_type(settings)], STEPS, f"{place}, `model_type`")
    parsed = {name: settings[name] for name in own if name in settings}
    cell = Cell("", "", "", 0, "data", "test", settings)
    for step, arguments in cell.commands(Path("cell")).items():
        main, *_ = kinds = cell.steps[step][1]
        parser = CommandParser(kinds)
        parser.error = partial(_refuse, place)
        found = vars(parser.parse_args(arguments))
        try:
            main(**{option.name: found[option.name] for option in fields(main)})
        except ValueError as error:
            _refuse(place, error)
        parsed |= found
    return {name: parsed[name] for name, value in settings.items() if value is not None and name in parsed}


def _refuse(place, message):
    raise ValueError(f"{place}: {message}")
