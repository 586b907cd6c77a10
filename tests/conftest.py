"""Tiny random models and their processors, and the folder of reference numbers."""

import copy
import os
import sys
from importlib import import_module
from pathlib import Path

import evaluate
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from modeling_megl import PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.processing_megl import make_image_processor, train_rationale_tokenizer
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


# Small matrix products gain nothing from several threads.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]

LABELS = ["cat", "polar bear", "owl"]
RATIONALES = [
    "it has pointed ears and whiskers",
    "a large white animal walks on the ice at the left",
    "two round eyes look out of the feathers",
]

# The tiny presets, smaller still: maps of 4 x 4 cells. Large random weights, so that outputs differ visibly.
SIZES = {
    "megl-vit-tiny": {
        "image_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "initializer_range": 0.3,
    },
    "megl-resnet-tiny": {"image_size": 32, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}
TEXT_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "initializer_range": 0.3}


@pytest.fixture(scope="session")
def tokenizer():
    return train_rationale_tokenizer([*RATIONALES, *LABELS, "This is a because"], vocab_size=320)


@pytest.fixture(scope="session")
def processor(tokenizer):
    image_processor = make_image_processor((32, 32), [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    return MeglProcessor(image_processor, tokenizer, max_rationale_length=40)


@pytest.fixture(scope="session")
def make_config(processor):
    """`make_config(preset, vision={}, text={}, **fields)`: a tiny configuration of a preset's structure."""

    def make(preset, vision=None, text=None, **fields):
        sizes = copy.deepcopy(PRESETS[preset])
        return MeglConfig(
            vision_config={**sizes["vision_config"], **SIZES[preset], **(vision or {})},
            text_config={**(text or {**sizes["text_config"], **TEXT_SIZE}), **processor.text_config_kwargs()},
            **{"evidence_size": 24, "num_evidence_tokens": 3, "initializer_range": 0.2, **fields},
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """`make_model(preset, seed=0, **fields)`: a tiny random model in evaluation mode."""

    def make(preset, seed=0, **fields):
        torch.manual_seed(seed)
        return MeglForImageClassification(make_config(preset, **fields)).eval()

    return make


@pytest.fixture()
def make_trainer(make_model, processor, tmp_path):
    """`make_trainer(preset, model, train, evaluated, output, **settings)`: a trainer of a tiny model on tiny data."""
    from explained_rows import make_dataset

    def make(preset="megl-resnet-tiny", model=None, train=None, evaluated=None, output="run", **kwargs):
        settings = {
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "distribution_loss_weight": 0.1,
        }
        model = model if model is not None else make_model(preset)
        return MeglTrainer(
            model=model,
            args=MeglTrainingArguments(output_dir=str(tmp_path / output), **{**settings, **kwargs}),
            processing_class=processor,
            train_dataset=make_dataset(12) if train is None else train,
            eval_dataset=make_dataset(7, masks="all") if evaluated is None else evaluated,
        )

    return make


@pytest.fixture()
def shared():
    """The folder of reference numbers."""
    folder = Path(os.environ.get("MEGL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference numbers at {folder}: set MEGL_SHARED to the folder that holds golden/")
    return folder


@pytest.fixture()
def own_cache(tmp_path, monkeypatch):
    """`load_dataset` caches in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture()
def modules_cache(monkeypatch, tmp_path):
    """Remote code is copied to a cache of its own, not to the user's, and forgotten after the test."""

    def forget():
        names = [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]
        return {name: sys.modules.pop(name) for name in names}

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Python would look for the code in a cache that an earlier test put there.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "transformers_modules").is_dir()])
    earlier = forget()
    yield
    forget()
    sys.modules.update(earlier)


@pytest.fixture
def run(monkeypatch):
    """`run(script, *arguments)` runs the `main` of a program of `scripts/` in this process."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        import_module(f"megl.scripts.{script}").main()

    return run


@pytest.fixture
def load(monkeypatch):
    monkeypatch.chdir(ROOT)
    return lambda name: evaluate.load(f"metrics/{name}")


@pytest.fixture
def without_meteor(monkeypatch):
    """As if pycocoevalcap were not installed: its program takes seconds to start."""
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)


@pytest.fixture
def rationale(load, without_meteor):
    return load("rationale")


@pytest.fixture(scope="module")
def clip_workplace(tmp_path_factory):
    """A folder with the metrics and, under the name of the published CLIP, a tiny random one."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "metrics").symlink_to(ROOT / "metrics")
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [*letters, *(letter + "</w>" for letter in letters), "ph", "de</w>"]
    vocabulary = {token: index for index, token in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[("p", "h"), ("d", "e</w>")], model_max_length=40)
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = vocabulary["<|endoftext|>"]
    start = vocabulary["<|startoftext|>"]
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**tiny, **special, "vocab_size": len(vocabulary), "max_position_embeddings": 40},
        vision_config={**tiny, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(2)
    model = CLIPModel(config)
    for parameter in model.parameters():  # the usual small initial values make all embeddings of a kind alike
        torch.nn.init.normal_(parameter, std=0.5)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder / "openai" / "clip-vit-base-patch32")
    return folder
