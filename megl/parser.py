"""The command line of all programs: dataclasses make the options, `--config` gives values, an error is one line."""

import argparse
import difflib
import json
import os
import re
import shutil
import sys
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool
from yaml.constructor import SafeConstructor

from megl.terminal import program


# The headings of the help, in their order; a program's own options stand above them.
OWN_TRAINING, COLUMNS = "training with explanations", "columns of the data set"
USUAL_TRAINING, OTHER_TRAINING = "usual options of transformers.TrainingArguments", "its other options"
HEADINGS = (OWN_TRAINING, USUAL_TRAINING, OTHER_TRAINING, COLUMNS)
# Of the hundred options of `TrainingArguments` those that `--help` tells; `--help_all` tells the others.
USUAL = {
    *("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "bf16"),
    *("eval_strategy", "save_strategy", "logging_steps", "report_to", "resume_from_checkpoint", "push_to_hub", "seed"),
}
TYPES = {int: "INT", float: "FLOAT", str: "TEXT", string_to_bool: "BOOL"}
SWITCHES = {"on": "True", "off": "False"}  # as YAML has them besides
TAG, WORDS = "tag:yaml.org,2002:", ("str", "int", "float", "bool", "timestamp")
TRUTH_VALUES = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # as `string_to_bool` knows them


def parse(document, *kinds):
    """
    What the command line says: an instance of each dataclass. A wrong one ends the program with one line, status 2.

    Args:
        document (`str`): The program's docstring, which begins its help.
        kinds: The dataclasses, the program's own first.
    """
    parser = CommandParser(kinds, document)
    try:
        return parser.parse_args_into_dataclasses(look_for_args_file=False)
    except ValueError as error:
        parser.error(" ".join(str(error).split()).removesuffix("."))


class CommandParser(HfArgumentParser):
    """
    `HfArgumentParser`, but that

    - a field with `positional` in its metadata is an argument without dashes,
    - words of an option may be joined by hyphens or by underscores, and the help has one of the two,
    - a bare `--flag` is true whatever follows it, unless that is a truth value,
    - `--config FILE` gives values in YAML, over which the command line wins,
    - the help is in groups, without most of `TrainingArguments` unless `--help_all` asks for it.
    """

    def __init__(self, kinds, document=""):
        self.actions, self.groups, self.hidden = [], {}, []
        self.headings = {
            option.name: heading(kind, option.name) for kind in kinds[1:] for option in fields(kind) if option.init
        }
        super().__init__(
            kinds,
            prog=os.path.basename(sys.argv[0]),
            description=described(document),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Hyphens are as good as underscores: --like-this.",
        )
        help = "YAML file of options, a line `option: value` for each; the command line wins over it"
        self.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=help)
        if self.hidden:
            help = "show this message with all options of transformers.TrainingArguments, and exit"
            self.add_argument("--help_all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=help)
        self.usage = f"%(prog)s {' '.join(_shown(action) for action in self.actions if action.required)} [OPTION ...]"

    def add_argument(self, *names, positional=False, **settings):
        """As `argparse` has it, in the group of the option."""
        name = settings.get("dest", names[0].lstrip("-"))
        if positional:
            settings.pop("required")
            names = [name]
        names = [each for each in names if "-" not in each.lstrip("-")]
        default, kind = settings.get("default"), settings.get("type")
        if isinstance(default, (str, int, float)) and default not in ("", argparse.SUPPRESS) and default is not False:
            settings["help"] = f"{settings.get('help', '')} (default: %(default)s)"
        if kind in TYPES and not settings.get("choices"):
            settings.setdefault("metavar", name if positional else TYPES[kind])
        title = self.headings.get(name)
        if title and not self.groups:
            titles = [each for each in HEADINGS if each in self.headings.values()]
            self.groups = {each: self.add_argument_group(each) for each in titles}
        action = (self.groups[title] if title else super()).add_argument(*names, **settings)
        if title == OTHER_TRAINING:
            self.hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
        self.actions.append(action)
        return action

    def error(self, message):
        self.exit(2, f"{program()}: {message} ({self.prog} --help tells the options)\n")

    def parse_known_args(self, args=None, namespace=None):
        """As `argparse` has it; what looks like an option and is none is refused, with the nearest that there is."""
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config.error = self.error
        config.add_argument("--config")
        found, words = config.parse_known_args(self._normal(sys.argv[1:] if args is None else args))
        if found.config is not None:
            self._read_config(found.config)
        return super().parse_known_args(words, namespace)

    def _normal(self, words):
        """The words with underscores in options, and a bare `--flag` as `--flag=True`, so that it takes none."""
        words, normal = list(words), []
        while words:
            word = words.pop(0)
            if word == "--":
                return [*normal, word, *words]
            name, equals, value = word.partition("=")
            if re.fullmatch(r"--\w[\w-]*", name):
                name, action = self._find(name)
                if name.startswith("--no_") and _is_flag(action) and name not in action.option_strings:
                    name, equals, value = "--" + name[5:], "=", "False"
                elif _is_flag(action) and not equals:
                    word = words[0].lower() if words else ""
                    if word in SWITCHES:
                        equals, value = "=", SWITCHES[words.pop(0).lower()]
                    elif word not in TRUTH_VALUES:
                        equals, value = "=", "True"
            normal.append(name + equals + value)
        return normal

    def _find(self, given):
        """The full name of an option and the option, of its name or its beginning; `None` where there are several."""
        name = "--" + given[2:].replace("-", "_")
        named = {each: action for action in self.actions for each in action.option_strings}
        positive = named.get("--" + name[5:]) if name.startswith("--no_") else None
        if name not in named and _is_flag(positive):
            return name, positive
        found = [name] if name in named else [each for each in named if each.startswith(name)]
        if not found:
            self.error(f"unknown option `{given}`{_nearest(name, named)}")
        return (found[0], named[found[0]]) if len(found) == 1 else (name, None)

    def _read_config(self, path):
        """Take the values of a YAML file as defaults: numbers and words as they are written there."""

        def refuse(message):
            self.error(f"`--config {path}`{message}")

        try:
            content = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
        except OSError as error:
            refuse(f" cannot be read: {error.strerror}")
        except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            refuse(f" cannot be read as YAML: {' '.join(str(error).split())}")
        if not isinstance(content, yaml.MappingNode):
            refuse(": expected a line `option: value` for each option")
        options = {action.dest: action for action in reversed(self.actions) if action.default != argparse.SUPPRESS}
        seen = set()
        for key, value in ((str(key.value), value) for key, value in content.value):
            name = key.replace("-", "_")
            if name in seen:
                refuse(f": `{key}` is given twice")
            seen.add(name)
            if name not in options:
                refuse(f": unknown option `{key}`{_nearest(name, options)}")
            if not options[name].option_strings:
                refuse(f": `{key}` is given on the command line, without dashes")
            if value.tag == f"{TAG}null":
                continue
            try:
                self.set_defaults(**{name: _read(options[name], value)})
            except (ValueError, TypeError, RecursionError, yaml.YAMLError, argparse.ArgumentTypeError):
                refuse(f": `{key}` must be {_expected(options[name])}, got {_written(value)}")
            options[name].required = False


class _HelpAll(argparse.Action):
    def __call__(self, parser, *_):
        for action, text in parser.hidden:
            action.help = text
        parser.print_help()
        parser.exit()


def heading(kind, name):
    """The group of the help that a dataclass's field stands in."""
    if kind.__name__ == "ColumnArguments":
        return COLUMNS
    owner = next(each for each in reversed(kind.__mro__) if is_dataclass(each) and name in each.__dataclass_fields__)
    if owner.__name__ != "TrainingArguments":
        return OWN_TRAINING
    return USUAL_TRAINING if name in USUAL else OTHER_TRAINING


def described(document):
    """A docstring for terminals: paragraphs as wide as the terminal, commands between the fences as they are."""
    width = min(shutil.get_terminal_size().columns - 2, 100)
    parts = []
    for place, part in enumerate(document.split("```")):
        if place % 2:
            parts.append(textwrap.indent(part.strip("\n"), "  "))
        else:
            parts += [textwrap.fill(each, width) for each in re.split(r"\n\s*\n", part) if each.strip()]
    return "\n\n".join(parts).replace("%", "%%")


def _shown(action):
    """An argument in the line of usage."""
    choices = "{" + ",".join(action.choices or []) + "}"
    value = (action.metavar or choices) + (" ..." if action.nargs == "+" else "")
    return f"{action.option_strings[0]} {value}" if action.option_strings else value


def _nearest(name, names):
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean `{near[0]}`?" if near else ""


def _is_flag(action):
    return action is not None and action.nargs == "?" and action.const is True


def _read(action, node):
    """A value of YAML as the option has it from the command line."""
    if node.tag == f"{TAG}bool" and action.nargs == "?":
        is_true = SafeConstructor().construct_yaml_bool(node)
        return action.const if is_true else (False if _is_flag(action) else action.default)
    is_list = action.nargs == "+"
    given = node.value if isinstance(node, yaml.SequenceNode) and is_list else [node]
    values = [action.type(_as_text(each)) for each in given]
    if not values or action.choices and not set(values) <= set(action.choices):
        raise ValueError
    return values if is_list else values[0]


def _as_text(node):
    """A word or a number as it is written, and names with values under them as JSON."""
    if isinstance(node, yaml.MappingNode):
        return json.dumps(yaml.safe_load(yaml.serialize(node)))
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(TAG) not in WORDS:
        raise ValueError
    return node.value


def _written(node):
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or names with values"


def _expected(action):
    if action.choices:
        return f"one of {', '.join(map(str, action.choices))}"
    kinds = {int: "a whole number", float: "a number", string_to_bool: "true or false"}
    return kinds.get(action.type, "text") if action.nargs != "+" else "a list"
