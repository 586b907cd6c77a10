"""What of a model's folder goes to the Hub."""

import fnmatch
import json
from pathlib import Path

from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_relative_import_files

from megl.evaluation.card import base_models
from modeling_megl import MeglConfig
from modeling_megl.configuration_megl import read_config
from modeling_megl.language_megl import ADAPTER_FOLDER


# Weights are safetensors, never pickles; a training's state stays at home.
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_ADAPTERS = (f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors")
_SETTINGS = (
    *("config.json", "generation_config.json", "training_settings.json"),
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
)
_TEXTS = ("README.md", "LICENSE", "LICENSE.*", "NOTICE")


def is_part(name):
    """Whether a file of that name, in a repository, is one that [`model_files`] may have uploaded before."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*_WEIGHTS, *_ADAPTERS, *_SETTINGS, "*.py"))


def model_files(folder):
    """
    The files of a model's folder that its repository needs: weights, settings, the code that `config.json` names, card
    and licence.

    Args:
        folder (`str` or `Path`): What `megl train` or `save_adapter` wrote.

    Returns:
        `dict[str, Path]`: their paths in the repository and on the disk, in order.

    Raises:
        `ValueError`: where the folder holds no MEGL model, a file is missing or lies elsewhere, or there is no card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: `megl train` writes one.")
    config = read_config(str(folder))
    if config.get("model_type") != MeglConfig.model_type:
        raise ValueError(f"{folder} holds no MEGL model: its `model_type` is {config.get('model_type')!r}.")
    needed = _needed(folder, config)
    patterns = (*_WEIGHTS, *(_ADAPTERS if config.get("text_adapter") else ()), *_SETTINGS, *_TEXTS)
    found = {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}
    files = {name: folder / name for name in sorted(found | needed)}
    for name, path in files.items():
        if not path.is_file():
            raise ValueError(f"{folder} is no whole model: it has no {name}{_ADVICE.get(name, '')}.")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to what lies outside of {folder}: put the file itself there.")
    return files


_ADVICE = {"README.md": "; `megl evaluate --update_card` writes one, with the model's figures"}


def _needed(folder, config):
    names = {"README.md", "config.json", "processor_config.json", *(_ADAPTERS if config.get("text_adapter") else ())}
    index = folder / "model.safetensors.index.json"
    names |= set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    entries = [*config.get("auto_map", {}).values()]
    entries += [pipeline["impl"] for pipeline in config.get("custom_pipelines", {}).values()]
    entries += [*(config.get("vision_config", {}).get("auto_map") or {}).values()]
    for module in {entry.split(".")[0] for entry in entries if entry and "--" not in entry}:
        names.add(f"{module}.py")
        try:
            names |= {Path(file).name for file in get_relative_import_files(folder / f"{module}.py")}
        except FileNotFoundError as error:
            names.add(Path(error.filename).name)
    return names


def model_card(folder, license=None, datasets=None):
    """
    The card of a model's folder, with licence, data sets and base models in its front matter where they are given.

    Args:
        folder (`str` or `Path`): The folder, which has a `README.md`.
        license (`str`, *optional*): An identifier of the Hub's, such as `mit`.
        datasets (`list[str]`, *optional*): Hub ids.

    Returns:
        `str`: the text; as it stands in the folder where nothing is to be added.
    """
    text = (Path(folder) / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=True)
    found = {"license": license, "datasets": datasets}
    if not card.data.get("base_model"):
        found["base_model"] = base_models(MeglConfig.from_pretrained(folder))
    found = {name: value for name, value in found.items() if value and card.data.get(name) != value}
    for name, value in found.items():
        card.data[name] = value
    return str(card) if found else text
