"""The command line: `megl COMMAND`, options from dataclasses and from a file, helps and errors."""

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import get_args

import pytest

from dataset_builders import BUILDERS, LAYOUTS
from megl.arguments import (
    AuditArguments,
    ColumnArguments,
    CompareArguments,
    EvaluateArguments,
    ExplainArguments,
    InitArguments,
    InspectArguments,
    PrepareArguments,
    TrainArguments,
    option,
    required,
)
from megl.cli import COMMANDS, main
from megl.parser import parse
from modeling_megl import PRESETS, MeglConfig
from modeling_megl.saliency_megl import SALIENCY_METHODS
from modeling_megl.training_arguments_megl import MeglTrainingArguments


@dataclass(kw_only=True)
class Arguments:
    images: list[str] = required("Pictures.", positional=True)
    output: str = required("Folder.")
    batch_size: int = option("Size.", 8)
    mask_share: float = option("Share.", 1.0)
    names: list[str] | None = option("Names.")
    on_error: str = option("Or not.", "stop", choices=["stop", "skip"])
    update_card: bool = option("Whether.", False)
    show_page: bool = option("Whether.", True)

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`--batch_size` must be 1 or more, got {self.batch_size}.")


@pytest.fixture()
def given(monkeypatch):
    """`given(*words, kinds=…)`: the dataclasses that `megl some` makes of a command line."""

    def given(*words, kinds=(Arguments,), name="megl some"):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return parse("Does it.", *kinds)

    return given


@pytest.fixture()
def refused(given, capsys):
    """`refused(*words)`: the one line that the command line is refused with."""

    def refused(*words, **options):
        with pytest.raises(SystemExit) as caught:
            given(*words, **options)
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


@pytest.fixture()
def config(tmp_path):
    """`config(text)`: `--config` and the path of a file of this text."""

    def config(text):
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return ("--config", tmp_path / "run.yaml")

    return config


@pytest.fixture()
def help_of(monkeypatch, capsys):
    """`help_of(run, *argv)`: what a program prints that is asked for its help."""

    def help_of(run, *argv):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", list(argv))
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code in (0, None)
        return capsys.readouterr().out

    return help_of


# ---- Commands ----


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_its_script(help_of, command):
    script = COMMANDS[command][0]
    ours = help_of(main, "megl", command, "--help")
    theirs = help_of(import_module(f"megl.scripts.{script}").main, f"scripts/{script}.py", "--help")
    (first, rest), (other, others) = (text.split("\n", 1) for text in (ours, theirs))
    assert rest == others and first.replace(f"megl {command}", f"{script}.py") == other
    assert first.startswith(f"usage: megl {command} ")
    examples = [line for line in rest.splitlines() if line.startswith(f"  megl {command} ")]
    assert len(examples) >= 2
    assert "(default: None)" not in rest and "=SUPPRESS" not in rest
    assert not re.search(r"^ +--\w+-", rest, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_help_does_not_wait_for_the_program(help_of, command, monkeypatch):
    monkeypatch.setattr("megl.cli.import_module", None)
    assert help_of(main, "megl", command, "-h").startswith(f"usage: megl {command} ")


def test_underscores_name_a_command_too(help_of):
    assert help_of(main, "megl", "compare_evaluations", "--help").startswith("usage: megl compare-evaluations FOLDER")


def test_commands_are_listed(monkeypatch, capsys):
    for words in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["megl", *words])
        main()
        said = capsys.readouterr().out
        assert re.findall(r"^  ([\w-]+)  ", said, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("trian", "did you mean `train`?"),
        ("x", f"expected one of {', '.join(COMMANDS)}."),
    ],
)
def test_an_unknown_command_is_told_with_the_nearest(monkeypatch, capsys, command, hint):
    monkeypatch.setattr(sys, "argv", ["megl", command])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and capsys.readouterr().err == f"megl: unknown command `{command}`: {hint}\n"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "megl.scripts.prepare_dataset", raising=False)
    monkeypatch.setitem(sys.modules, "dataset_builders", None)
    monkeypatch.setattr(sys, "argv", ["megl", "prepare", "object_me"])
    with pytest.raises(SystemExit, match=r"^megl prepare: `dataset_builders` is not .*: pip install 'megl\[train\]'$"):
        main()


def test_a_checkout_that_is_not_installed_is_told(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="megl.scripts")

    monkeypatch.setattr("megl.cli.import_module", absent)
    monkeypatch.setattr(sys, "argv", ["megl", "push"])
    with pytest.raises(
        SystemExit, match=r"^megl push: this is a checkout that is not installed: pip install -e '\.\[eva"
    ):
        main()


@pytest.mark.parametrize(("environment", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_asleep_unless_told_otherwise(monkeypatch, environment, policy):
    seen = []
    script = SimpleNamespace(main=lambda: seen.append(environment["OMP_WAIT_POLICY"]))
    monkeypatch.setattr("megl.cli.import_module", lambda name: script)
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(sys, "argv", ["megl", "train"])
    main()
    assert seen == [policy]


# ---- Options ----


def test_words_are_joined_by_hyphens_or_underscores(given):
    for words in (("--batch_size", 3), ("--batch-size", 3), ("--batch-size=3",), ("--batch", 3)):
        (arguments,) = given("a-b.png", "--output", "x-y_z", *words)
        assert (arguments.images, arguments.output, arguments.batch_size) == (["a-b.png"], "x-y_z", 3)
    (arguments,) = given("--output", "x", "--", "--a-b.png")
    assert arguments.images == ["--a-b.png"]


@pytest.mark.parametrize(
    ("words", "update_card", "show_page"),
    [
        ((), False, True),
        (("--update_card", "--no_show_page"), True, False),
        (("--update-card", "True", "--no-show-page"), True, False),
        (("--update_card=true", "--show_page", "no"), True, False),
        (("--update_card", "False", "--show_page"), False, True),
        (("--update_card", "--update_card", "False"), False, True),
    ],
)
def test_flags_in_all_their_forms(given, words, update_card, show_page):
    (arguments,) = given(*words, "--output", "x", "a.png")
    assert (arguments.update_card, arguments.show_page, arguments.images) == (update_card, show_page, ["a.png"])


def test_a_flag_takes_no_picture_for_its_value(given):
    (arguments,) = given("--output", "x", "--update_card", "a.png", "b.png")
    assert arguments.update_card is True and arguments.images == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a",), "the following arguments are required: --output"),
        (("--output", "x"), "the following arguments are required: images"),
        (("a", "--output", "x", "--batch-sise", 3), "unknown option `--batch-sise`: did you mean `--batch_size`?"),
        (("a", "--output", "x", "--quite"), "unknown option `--quite`"),
        (("a", "--output", "x", "--batch_size", "two"), "argument --batch_size: invalid int value: 'two'"),
        (("a", "--output", "x", "--batch_size", 0), "`--batch_size` must be 1 or more, got 0"),
        (("a", "--output", "x", "--config"), "argument --config: expected one argument"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused, words, message):
    assert refused(*words) == f"megl some: {message} (megl some --help tells the options)"


def test_a_script_is_called_by_its_name(refused):
    line = refused("a", name="scripts/some.py")
    assert line == "some: the following arguments are required: --output (some.py --help tells the options)"


PLACED = ("--dataset", "d", "--output", "o")
TRAINED = ("--model_name_or_path", "m", "--dataset_name", "d")


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (TrainArguments, (*TRAINED, "--mask_share", 2), "`--mask_share` must lie in [0, 1], got 2.0"),
        (InitArguments, PLACED, "one of `--preset`, `--vision` and `--model` is needed, got none"),
        (InitArguments, (*PLACED, "--vision", "v", "--model", "m"), "is needed, got `--vision` and `--model`"),
        (EvaluateArguments, ("--model", "m", *PLACED, "--seed", -1), "`--seed` must be 0 or more, got -1"),
        (InspectArguments, ("d", *PLACED[2:], "--examples", -1), "`--examples` must be 0 or more, got -1"),
        (AuditArguments, ("m", "d", *PLACED[2:], "--resamples", 0), "`--resamples` must be 1 or more, got 0"),
        (CompareArguments, ("a", *PLACED[2:]), "two or more folders are needed, got a alone"),
        (ExplainArguments, ("a", "--model", "m", *PLACED[2:], "--batch_size", 0), "`--batch_size` must be 1 or more"),
    ],
)
def test_ranges_are_checked_before_the_work(refused, kind, words, message):
    assert message in refused(*words, kinds=(kind,))


def test_faithfulness_has_a_value_of_its_own(given):
    common = ("--model", "a", "b", "--dataset", "d", "--output", "o")
    for words, value in (((), None), (("--faithfulness",), "blur"), (("--faithfulness", "noise"), "noise")):
        (arguments,) = given(*common, *words, kinds=(EvaluateArguments,))
        assert (arguments.faithfulness, arguments.model) == (value, ["a", "b"])


def test_choices_are_those_of_the_model_and_the_builders():
    def choices(kind, name):
        found = get_args(kind.__annotations__[name])
        return {each for part in found for each in (get_args(part) or [part])} - {type(None)}

    assert choices(InitArguments, "preset") == set(PRESETS)
    assert choices(InitArguments, "saliency_method") == set(SALIENCY_METHODS)
    for name in ("saliency_score", "rationale_gradient", "grounding_map"):
        assert choices(InitArguments, name) == choices(MeglConfig, name)
    assert choices(PrepareArguments, "builder") == set(BUILDERS)
    assert choices(PrepareArguments, "layout") == set(LAYOUTS)


def test_the_help_of_training_begins_with_its_own_options(help_of):
    said = help_of(main, "megl", "train", "--help")
    headings = ["options:", "training with explanations:", "usual options of transformers.TrainingArguments:"]
    headings.append("columns of the data set:")
    assert re.findall(r"^[\w .]+:$", said, re.MULTILINE) == headings
    parts = dict(zip(headings, re.split(r"^[\w .]+:$", said, flags=re.MULTILINE)[1:], strict=True))
    assert "--mask_share FLOAT" in parts["options:"] and "(default: 1.0)" in parts["options:"]
    assert "--visual_loss_weight FLOAT" in parts["training with explanations:"]
    assert "--learning_rate FLOAT" in parts[headings[2]] and "--id_column TEXT" in parts[headings[3]]
    assert "--adam_beta1" not in said and len(said.splitlines()) < 200
    everything = help_of(main, "megl", "train", "--help-all")
    assert "its other options:" in everything and "--adam_beta1 FLOAT" in everything
    assert "megl-trained \\\n      --num_train_epochs 10" in said


# ---- Files of options ----


def test_a_file_gives_values_and_the_command_line_wins(given, config):
    text = "output: from-file\nbatch-size: 4\nmask_share: 1e-3\nnames: [a, 2]\nupdate_card: true\nshow_page: no\n"
    file = config(text + "on_error:\n")
    (arguments,) = given("a.png", *file)
    assert arguments == Arguments(
        images=["a.png"],
        output="from-file",
        batch_size=4,
        mask_share=0.001,
        names=["a", "2"],
        update_card=True,
        show_page=False,
    )
    for words in (file, (f"--config={file[1]}",)):
        words = (*words, "--batch_size", 5, "--names", "c", "--update_card", "False", "--show_page", "a.png", "b.png")
        (arguments,) = given("--output", "mine", *words)
        assert (arguments.output, arguments.batch_size, arguments.names) == ("mine", 5, ["c"])
        assert (arguments.update_card, arguments.show_page, arguments.images) == (False, True, ["a.png", "b.png"])


def test_a_file_gives_the_settings_of_a_training(given, config):
    text = "model_name_or_path: m\ndataset_name: d\nlearning_rate: 1e-3\nclass_weights: [1, 2.5]\n"
    text += "lr_scheduler_kwargs: {num_cycles: 2}\nvisual_loss: rrr\nid_column: key\n"
    kinds = (TrainArguments, ColumnArguments, MeglTrainingArguments)
    own, columns, training = given(*config(text), "--visual_loss", "energy", kinds=kinds)
    assert (own.model_name_or_path, own.dataset_name, columns.id_column) == ("m", "d", "key")
    assert (training.learning_rate, training.class_weights, training.visual_loss) == (1e-3, [1.0, 2.5], "energy")
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_file_gives_words_and_numbers_as_they_are_written(given, config):
    text = "output: no\nnames: [no, 010, 3.10, 2001-01-01, ~]\n"
    with pytest.raises(SystemExit):
        given("a.png", *config(text))  # nothing is no name
    (arguments,) = given("a.png", *config(text.replace(", ~", "")))
    assert arguments.output == "no" and arguments.names == ["no", "010", "3.10", "2001-01-01"]


def test_an_off_or_no_before_a_picture_is_no(given):
    for words, value in (("on", True), ("off", False), ("no", False), ("a.jpg", True)):
        (arguments,) = given("--output", "x", "--update_card", words, "a.png")
        assert (arguments.update_card, arguments.images[-1]) == (value, "a.png")
    for word in ("--no-update-card", "--no_update_card"):
        (arguments,) = given("--output", "x", word, "a.png")
        assert (arguments.update_card, arguments.images) == (False, ["a.png"])


def test_the_option_of_a_file_may_be_shortened(given, config):
    flag, file = config("batch_size: 7")
    (arguments,) = given("a.png", "--output", "x", "--conf", file)
    assert flag == "--config" and arguments.batch_size == 7


def test_a_file_turns_a_choice_on_that_has_a_usual_value(given, config):
    for text, value in (("true", "blur"), ("mean", "mean"), ("", None)):
        words = ("--model", "m", *PLACED, *config(f"faithfulness: {text}"))
        (arguments,) = given(*words, kinds=(EvaluateArguments,))
        assert arguments.faithfulness == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 4", "unknown option `batch_sise`: did you mean `batch_size`?"),
        ("config: other.yaml", "unknown option `config`"),
        ("help: true", "unknown option `help`"),
        ("batch_size: 4.5", "`batch_size` must be a whole number, got '4.5'"),
        ("batch_size: [1, 2]", "`batch_size` must be a whole number, got a list or names with values"),
        ("mask_share: much", "`mask_share` must be a number, got 'much'"),
        ("on_error: go on", "`on_error` must be one of stop, skip, got 'go on'"),
        ("update_card: perhaps", "`update_card` must be true or false, got 'perhaps'"),
        ("images: [a.png]", "`images` is given on the command line, without dashes"),
        ("- output", "expected a line `option: value` for each option"),
        ("", "expected a line `option: value` for each option"),
        ("batch_size: 1\nbatch-size: 2", "`batch-size` is given twice"),
        ("output: !!python/name:os.getcwd", "`output` must be text, got ''"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(refused, config, text, message):
    line = refused("a.png", "--output", "x", *config(text))
    assert re.fullmatch(rf"megl some: `--config \S+run.yaml`: {re.escape(message)} \(megl some --help .*\)", line)


def test_a_file_that_cannot_be_read_is_one_line(refused, config, tmp_path):
    line = refused("a.png", *config("output: ["))
    assert re.match(r"megl some: `--config \S+run.yaml` cannot be read as YAML: ", line)
    assert "`output` must be text" in refused("a.png", *config("output: !!python/object/apply:os.getcwd []"))
    assert "No such file" in refused("a.png", "--config", tmp_path / "nowhere.yaml")
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as YAML" in refused("a.png", "--config", tmp_path / "run.yaml")
