"""Writes docs/reference.md from docstrings, the commands' options and the metrics' descriptions.

```
python -m docs.make_reference
```
"""

import inspect
import re
import textwrap
from argparse import SUPPRESS
from contextlib import suppress
from functools import reduce
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import dataset_builders
import modeling_megl
from dataset_builders import build
from megl import exporting
from megl.annotation import store, suggestions
from megl.cli import COMMANDS
from megl.demo import drawing, space
from megl.evaluation import audit
from megl.evaluation.metrics import load
from megl.parser import OTHER_TRAINING, USUAL_TRAINING, CommandParser
from modeling_megl import (
    collator_megl,
    compile_megl,
    losses_megl,
    recombination_megl,
    saliency_megl,
    training_arguments_megl,
    training_megl,
)


FILE = Path(__file__).with_name("reference.md")
METRICS = Path(__file__).parents[1] / "metrics"
HEAD = """# Reference

Made from the code by `make reference`; mend it there. Shapes: B images, C channels, L tokens.
"""
GENERAL = """Every command takes `--help`, and `--config FILE`: YAML with a line `option: value` for each, over which
the command line wins. Hyphens are as good as underscores. `megl train` takes every option of `TrainingArguments`
besides: `megl train --help_all`."""
MODEL = "MeglForImageClassification"
# Section to where its names are and which: `Class.method` is a method.
SECTIONS = {
    "Model": (
        modeling_megl,
        ("MeglConfig", "MeglConfig.from_preset", "MeglConfig.from_pretrained", MODEL)
        + tuple(f"{MODEL}.{name}" for name in ("from_pretrained", "from_vision_text_pretrained", "forward", "explain"))
        + tuple(f"{MODEL}.{name}" for name in ("explain_pixels", "generate_rationales", "match_processor"))
        + ("MeglOutput",),
    ),
    "Grounding": (modeling_megl.modeling_megl, ("MeglGrounding", "MeglGrounding.forward")),
    "Processor": (
        modeling_megl,
        ("MeglProcessor",)
        + tuple(f"MeglProcessor.{name}" for name in ("__call__", "prompts", "batch_decode_rationales", "from_preset"))
        + tuple(f"MeglProcessor.{name}" for name in ("from_vision_pretrained", "from_vision_text_pretrained")),
    ),
    "Pipeline": (modeling_megl, ("ExplainedImageClassificationPipeline",)),
    "Training arguments": (training_arguments_megl, ("MeglTrainingArguments",)),
    "Trainer": (training_megl, ("MeglTrainer", "MeglTrainer.train", "MeglTrainer.save_model", "MeglTrainer.end")),
    "Collator": (collator_megl, ("MeglDataCollator", "TellEpoch", "check_labels")),
    "Compiling": (compile_megl, ("compile_parts",)),
    "Recombination": (recombination_megl, ("Recombination", "recombine", "fill_in")),
    "Visual losses": (losses_megl, tuple(sorted(losses_megl.VISUAL_LOSSES)) + ("res_kernel", "res_threshold")),
    "VEDC and text loss": (
        losses_megl,
        ("distribution_consistency", "map_moments", "map_quantiles", "map_layout", "rationale_loss", "resize_masks"),
    ),
    "Saliency methods": (
        saliency_megl,
        (*saliency_megl.SALIENCY_METHODS, "explained_scores", "compute_saliency", "normalize_map"),
    ),
    "Annotation": (store, ("Annotations", "Annotations.save", "Annotations.skip")),
    "Annotation queue": (suggestions, ("place_in_queue", "take_turns")),
    "Audit": (audit, ("verdict",)),
    "Demo": (drawing, ("overlay", "contours", "paste", "without_object")),
    "Space": (space, ("write_space",)),
    "Export": (exporting, ("export_model", "make_program", "preprocessing", "check_equal")),
    "Data sets": (dataset_builders, ("build_dataset", "HubTarget", "HubTarget.push")),
    "Data set options": (build, ("ExplainedImagesConfig",)),
}


def reference():
    """The page, as text."""
    parts = {title: [entry(module, name) for name in names] for title, (module, names) in SECTIONS.items()}
    parts["Commands"] = [GENERAL, *(command(name, program) for name, (program, *_) in COMMANDS.items())]
    parts["Metrics"] = [metric(card.parent.name) for card in sorted(METRICS.glob("*/README.md"))]
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in parts)
    sections = (f"## {title}\n\n" + "\n\n".join(entries) for title, entries in parts.items())
    return "\n".join([HEAD, contents, "", "\n\n".join(sections), ""])


def anchor(title):
    return title.lower().replace(" ", "-")


def entry(module, name):
    """A class, function or method: its heading, signature and docstring."""
    found = reduce(getattr, name.split("."), module)
    lines = [f"### `{name}`", ""]
    if not inspect.isclass(found):
        lines += ["```", signature(found, name.rpartition(".")[2]), "```", ""]
    return "\n".join([*lines, markdown(inspect.getdoc(found))])


def signature(function, name):
    """A function's parameters and their defaults, without `self` and types, in lines that fit the page."""
    given = inspect.signature(function)
    named = (each for key, each in given.parameters.items() if key not in ("self", "cls"))
    kept = [each.replace(annotation=each.empty) for each in named]
    text = f"{name}{given.replace(parameters=kept, return_annotation=given.empty)}"
    text = re.sub(r"<function (\w+) at \w+>", r"\1", text)
    return textwrap.fill(text, 115, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def markdown(docstring):
    """A docstring with its arguments as a list and its references as plain names."""
    text = re.sub(r"\[`~?(?:\w+\.)*?(\w+(?:\.\w+)?)`\]", r"`\1`", inspect.cleandoc(docstring).removesuffix("```"))
    text = text + "```" if text.count("```") % 2 else text
    lines, block = [], None
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Returns, called .*):", line):
            block = line
            lines += [f"**{line}**", ""]
            continue
        if line and not line.startswith(" "):
            block = None
        lines.append(line if block is None else in_block(line, block))
    return "\n".join(lines).strip()


def in_block(line, block):
    """A line under `Args:` or the like, as part of a list or of a paragraph."""
    text = line.strip()
    if block not in ("Args:", "Raises:") or not text:
        return text
    if re.match(r" {4}\S" if block == "Args:" else r" {4}`\w+`:", line):
        return "- " + re.sub(r"^([a-z_][\w, ]*)(?= \(|:)", r"`\1`", text)
    return f"  {text}"


def command(name, program):
    """A command: what it does, and a table of its options without those that are `TrainingArguments`' own."""
    module = import_module(f"megl.scripts.{program}")
    parser = parser_of(module)
    theirs, general = (USUAL_TRAINING, OTHER_TRAINING), ("help", "help_all", "config")
    own = [each for each in parser.actions if parser.headings.get(each.dest) not in theirs]
    rows = [row(action) for action in own if action.dest not in general]
    table = ["| option | default | what it is |", "|---|---|---|", *rows]
    return "\n".join([f"### `megl {name}`", "", markdown(module.__doc__), "", *table])


def parser_of(module):
    """The parser of a program, taken where it is about to read the command line."""
    found = []

    def take(parser, *arguments, **options):
        found.append(parser)
        raise SystemExit

    with patch.object(CommandParser, "parse_known_args", take), suppress(SystemExit):
        module.main()
    return found[0]


def row(action):
    name = f"`{action.option_strings[0]}`" if action.option_strings else f"`{action.metavar or action.dest}`"
    default = "required" if action.required else "" if action.default in (None, SUPPRESS) else f"`{action.default}`"
    choices = f" One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    text = (action.help or "").removesuffix("(default: %(default)s)").strip()
    text = " ".join(f"{text}{choices}".split()).replace("|", "\\|")
    return f"| {name} | {default} | {text} |"


def metric(name):
    """A metric: what it is, and where its card is."""
    text = load(name).description.strip()
    return f"### `metrics/{name}`\n\n{text}\n\nInputs and values: [its card](../metrics/{name}/README.md)."


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
