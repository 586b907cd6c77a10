"""Ctrl-C: no traceback, one line that says what is kept and how to go on, and exit status 130."""

import json
import os
import signal

import pytest

import megl.cli
from megl.scripts import audit, evaluate_megl, train_megl
from megl.terminal import uninterrupted
from megl.training_record import TrainingRecord


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a terminal: shells have what they run in the background take no notice of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from dataset_builders import ObjectMe, build_dataset

    folder = tmp_path_factory.mktemp("data") / "object_me"
    build_dataset(ObjectMe, "sample", folder, sample_sizes={"train": 10, "validation": 5, "test": 5})
    return folder


@pytest.fixture()
def untrained(run, dataset, tmp_path):
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "untrained")
    return tmp_path / "untrained"


@pytest.fixture()
def train(run, untrained, dataset, tmp_path):
    options = "--per_device_train_batch_size 4 --report_to none --disable_tqdm True --save_strategy steps".split()
    options += "--eval_strategy steps --eval_steps 2 --max_steps 3".split()
    where = ("--model_name_or_path", untrained, "--dataset_name", dataset, "--output_dir", tmp_path / "trained")
    return lambda *more: run("train_megl", *where, *options, *more)


def press(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)


def said(capsys, call, *arguments):
    """The last line that an interrupted program writes."""
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    written = capsys.readouterr().err
    assert caught.value.code == 130 and "Traceback" not in written
    return written.splitlines()[-1]


def test_a_training_tells_of_its_last_checkpoint_and_goes_on_from_it(train, tmp_path, monkeypatch, capsys):
    output = tmp_path / "trained"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRecord, "on_evaluate", press)
        line = said(capsys, train, "--save_steps", 10)
        again = "the same command with `--resume_from_checkpoint True`"
        assert line == f"train_megl: interrupted: no checkpoint was written yet; {again} begins anew."
        line = said(capsys, train, "--save_steps", 1, "--resume_from_checkpoint", "True")
    assert line == f"train_megl: interrupted: {output}/checkpoint-1 is kept; {again} goes on from there."
    train("--save_steps", 1, "--resume_from_checkpoint", "True")
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 3


def test_the_trained_model_is_written_whole(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_megl.MeglTrainer, "save_state", press)
    line = said(capsys, train, "--save_steps", 10)
    assert line == f"train_megl: interrupted: the trained model in {tmp_path / 'trained'} is whole."
    assert (tmp_path / "trained" / "training_settings.json").is_file()


def test_ctrl_c_works_again_after_what_it_waits_for():
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        press()
        reached.append(True)
    assert reached and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("program", [audit, evaluate_megl])
def test_a_folder_is_written_whole_or_not_at_all(program, run, untrained, dataset, tmp_path, monkeypatch, capsys):
    name, output = program.__name__.rpartition(".")[2], tmp_path / "out"
    words = {"audit": [untrained, dataset], "evaluate_megl": ["--model", untrained, "--dataset", dataset]}[name]
    monkeypatch.setattr(program, {"audit": "write_audit", "evaluate_megl": "write_report"}[name], press)
    line = said(capsys, run, name, *words, "--output", output, "--resamples", 5)
    assert line == f"{name}: interrupted: nothing is written."
    assert not output.exists() and not list(tmp_path.glob(".out*"))


def test_a_whole_folder_is_kept(run, untrained, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_megl, "update_card", press)
    words = ["--model", untrained, "--dataset", dataset, "--output", tmp_path / "out", "--update_card"]
    line = said(capsys, run, "evaluate_megl", *words, "--resamples", 5)
    assert line == f"evaluate_megl: interrupted: {tmp_path / 'out'} is whole."
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_any_command_ends_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["megl", "prepare"])
    monkeypatch.setattr(megl.cli, "import_module", press)
    line = said(capsys, megl.cli.main)
    assert line == "megl prepare: interrupted: what it had begun to write is not kept."
