"""What of a model's folder goes to the Hub."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_relative_import_files

from megl.evaluation.card import TRAINING_CURVES, base_models
from modeling_megl import MeglConfig
from modeling_megl.configuration_megl import one_line, read_config
from modeling_megl.language_megl import ADAPTER_FOLDER


# Weights are safetensors, never pickles; a training's state stays at home.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_ADAPTERS = (f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors")
_SETTINGS = (
    *("config.json", "generation_config.json", "training_settings.json"),
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
)
_TEXTS = ("README.md", TRAINING_CURVES, ".eval_results/*.yaml", "LICENSE", "LICENSE.*", "NOTICE")


def is_weights(name):
    """Whether a file of that name in a repository is weights, of which an earlier upload may have had others."""
    return name in _ADAPTERS or _WEIGHTS.fullmatch(name) is not None


def model_files(folder, needs_card=True):
    """
    The files of a model's folder that its repository needs: weights, settings, the code that they name, card, figures
    and licence.

    Args:
        folder (`str` or `Path`): What `megl train` or `save_adapter` wrote.
        needs_card (`bool`, *optional*, defaults to `True`): Whether it must have a `README.md`.

    Returns:
        `dict[str, Path]`: their paths in the repository and on the disk, in order.

    Raises:
        `ValueError`: where the folder holds no MEGL model, a file or the card is missing or lies elsewhere, or the
            settings are not as they should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: `megl train` writes one.")
    config = read_config(str(folder))
    if config.get("model_type") != MeglConfig.model_type:
        raise ValueError(f"{folder} holds no MEGL model: its `model_type` is {config.get('model_type')!r}.")
    try:
        needed = _needed(folder, config)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"The settings of {folder} are not as they should be: {one_line(error)}.") from error
    found = {path.relative_to(folder).as_posix() for pattern in (*_SETTINGS, *_TEXTS) for path in folder.glob(pattern)}
    card = {"README.md"} if needs_card else set()
    files = {name: folder / name for name in sorted(found | needed | card)}
    for name, path in files.items():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name} lies outside of {folder}, or is a link to what does: put the file itself there.")
        if not path.is_file():
            raise ValueError(f"{folder} is not complete: it has no {name}{_ADVICE.get(name, '')}.")
    return files


_ADVICE = {"README.md": "; `megl evaluate --update_card` writes one, with the model's figures"}


def _needed(folder, config):
    """The names of the files without which the repository would not work, and of the code that it has."""
    names = {"config.json", "processor_config.json", *_weights(folder)}
    if config.get("text_adapter"):
        _check_language_model(folder, config.get("text_base_model"))
        names |= set(_ADAPTERS)
    settings = folder / "processor_config.json"
    processor = json.loads(settings.read_text()) if settings.is_file() else {}
    for module in {entry.split(".")[0] for entry in _code(config) | _code(processor)}:
        names.add(f"{module}.py")
        try:
            names |= {Path(file).name for file in get_relative_import_files(folder / f"{module}.py")}
        except FileNotFoundError as error:
            names.add(Path(error.filename).name)
    return names


def _weights(folder):
    """The names of the files of weights, and of their index where there are several."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {"model.safetensors"}
    names = set(json.loads(index.read_text())["weight_map"].values())
    for name in names:
        if not _WEIGHTS.fullmatch(name):
            raise ValueError(f"{index} must name files such as model-00001-of-00002.safetensors, got {name!r}.")
    return {index.name, *names}


def _check_language_model(folder, name):
    if name is None or Path(name).exists():
        raise ValueError(
            f"{folder} holds adapters of a language model that others cannot fetch, {name}: name its Hub id as "
            "`text_base_model` in config.json, or push the whole model."
        )


def _code(settings):
    """What settings name of code in their own repository, at any depth: `module.Class`."""
    if not isinstance(settings, dict):
        return set()
    entries = {settings["impl"]} if isinstance(settings.get("impl"), str) else set()
    for value in (settings.get("auto_map") or {}).values():
        entries |= {one for one in (value if isinstance(value, list) else [value]) if one}
    found = {entry for entry in entries if "--" not in entry}
    return found.union(*(_code(value) for value in settings.values()))


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
    path = Path(folder) / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no card with metadata: {one_line(error)}.") from error
    found = {"license": license, "datasets": datasets}
    if not card.data.get("base_model"):
        config = read_config(str(folder))
        found["base_model"] = base_models(config.get("vision_base_model"), config.get("text_base_model"))
    found = {name: value for name, value in found.items() if value and card.data.get(name) != value}
    for name, value in found.items():
        card.data[name] = value
    return str(card) if found else text
