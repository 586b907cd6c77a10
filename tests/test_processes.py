"""Two processes that train as one, also where they are killed and go on, and however the model is sharded."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT
from safetensors.torch import load_file

from modeling_megl import MeglForImageClassification
from modeling_megl.training_megl import MeglTrainingArguments


FOLDER = Path(__file__).parent


def start(script, *arguments, processes=2):
    """Run a program of this folder in some processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, FOLDER / script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def folder(make_model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    for name, problem_type in (("model", None), ("labels", "multi_label_classification")):
        make_model("megl-vit-tiny", problem_type=problem_type).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def test_two_processes_train_as_one_on_the_joined_batch(folder):
    """Masks on the first process alone, then on none, then on the second alone; every kind of state there is."""
    from two_processes import CASES, MULTI_LABEL, RECOMBINED, train

    for case in CASES:
        train(case, folder, batch_size=8, name="one")
    done = start("two_processes.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        expected = load_file(folder / f"{case}-one.safetensors")
        assert case in MULTI_LABEL or expected["log.loss_distribution"].all()
        assert (expected["log.loss_visual"].tolist()[1] == 0) == (case not in RECOMBINED)
        for rank in (0, 1):
            found = load_file(folder / f"{case}-two-{rank}.safetensors")
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), (case, rank, name)


@pytest.fixture(scope="module")
def whole(folder):
    """The training of `processes.py` in one process, without an interruption."""
    done = start("processes.py", folder, "whole", "whole", processes=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "whole.safetensors"), load_file(folder / "whole" / "model.safetensors")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp_full", "fsdp_sharded", "zero_2"])
def test_killed_and_resumed_by_two_processes_is_one_process_alone(folder, whole, strategy):
    """Twenty steps, killed at the twelfth; some masks and rationales; an evaluation that fills up its last batch."""
    if strategy == "zero_2" and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: `make test-deepspeed`")
    done = start("processes.py", folder, strategy, "begin")
    assert "Signal 9 (SIGKILL)" in done.stderr, done.stderr[-3000:]
    assert [path.name for path in (folder / strategy).iterdir()] == ["checkpoint-10"]
    done = start("processes.py", folder, strategy, "resume")
    assert done.returncode == 0, done.stderr[-3000:]
    expected, weights = whole
    found = load_file(folder / f"{strategy}.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    trained = load_file(folder / strategy / "model.safetensors")
    for name, value in weights.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5)
    reloaded = MeglForImageClassification.from_pretrained(folder / strategy)
    assert type(reloaded).__name__ in reloaded.config.architectures
    assert (folder / strategy / "modeling_megl.py").is_file()


def test_end_waits_for_the_others_before_the_group_ends(make_trainer, monkeypatch):
    trainer, steps = make_trainer(), []
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", lambda: steps.append("wait"))
    monkeypatch.setattr(trainer.accelerator, "end_training", lambda: steps.append("end"))
    trainer.end()
    assert steps == ["wait", "end"]


def test_fsdp_without_an_accelerator_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.args.fsdp = True
    with pytest.raises(ValueError, match="`fsdp` shards on accelerators alone, .* leave it out"):
        trainer._check_sharding()


def test_zero_3_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(MeglTrainingArguments, "deepspeed_plugin", SimpleNamespace(zero_stage=3), raising=False)
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda self: None)
    with pytest.raises(ValueError, match="DeepSpeed's ZeRO-3 .* use ZeRO-2, or FSDP 2"):
        MeglTrainingArguments(output_dir=str(tmp_path))


@pytest.mark.parametrize(
    "version, settings, message",
    [
        (1, {}, "FSDP 1 shards again .* use FSDP 2, `fsdp_config={'version': 2}`"),
        (2, {"lora_rank": 2}, "`lora_rank` puts PEFT's wrapper .* leave out `fsdp`, or use DeepSpeed's ZeRO-2"),
        (
            2,
            {"visual_loss": "res_l"},
            "`visual_loss='res_l'` learns a parameter .* use `res_g`, or plain data parallel",
        ),
    ],
)
def test_sharding_that_cannot_be_is_refused_with_what_can(make_trainer, version, settings, message):
    trainer = make_trainer(**settings)
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=version)
    try:
        with pytest.raises(ValueError, match=message):
            trainer._check_sharding()
    finally:
        del trainer.accelerator.state.fsdp_plugin


# ---- Accelerate's files, and what processes exchange ----


def test_accelerate_reads_the_examples(monkeypatch):
    files = {path.stem: str(path) for path in (ROOT / "examples" / "accelerate").glob("*.yaml")}
    kinds = {name: load_config_from_file(file).distributed_type.value for name, file in files.items()}
    assert kinds == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}
    assert load_config_from_file(files["zero2"]).deepspeed_config["zero_stage"] == 2
    command = ["--config_file", files["fsdp2"], "-m", "megl", "train"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert arguments.num_processes == 8
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


def test_processes_exchange_gradients_and_little_else(folder):
    done = start("exchanged_bytes.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "bytes.json").read_text())
    model = MeglForImageClassification.from_pretrained(folder / "model")
    parameters = list(model.parameters())
    gradients, buffers = 4 * sum(map(torch.numel, parameters)), 4 * sum(map(torch.numel, model.buffers()))
    # What the losses are divided by: 9 numbers. And which parameters were used, an integer for each.
    counts = 8 * 9
    assert found["ddp"] == {"allreduce": gradients + 4 * len(parameters) + counts, "broadcast": buffers}
    # Shards of one length, which are filled up. Of the parameters, what is sharded by layer is gathered twice.
    assert gradients <= found["fsdp"]["reduce_scatter"] < 1.02 * gradients
    assert gradients < found["fsdp"]["allgather"] < 2 * found["fsdp"]["reduce_scatter"]
    assert found["fsdp"]["allreduce"] == counts
