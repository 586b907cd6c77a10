"""What is used of other packages although its name begins with an underscore: all of it, and why."""

import ast
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]

PRIVATE = {
    # Transformers, models
    "_attn_implementation": "read only, to set it again by `set_attn_implementation`; nothing public tells it",
    "_from_config": "the one way to a model of random weights of a given class, dtype and attention",
    "_init_weights": "what a model class is to define",
    "_no_split_modules": "what a model class is to define",
    "_supports_sdpa": "what a model class is to define",
    # Transformers, pipelines
    "_forward": "what a pipeline is to define",
    "_sanitize_parameters": "what a pipeline is to define",
    "_load_feature_extractor": "what a pipeline is to define",
    "_load_image_processor": "what a pipeline is to define",
    "_load_processor": "what a pipeline is to define",
    "_load_tokenizer": "what a pipeline is to define",
    # Transformers, Trainer
    "_load_optimizer_and_scheduler": "what is trained beside the model is read back; no callback hears of the reading",
    "_prepare_inputs": "to the device, which `prediction_step` has to see to itself",
    "_push_from_checkpoint": "would upload a pickle, and leave out the code; callbacks hear of it too late",
    "_save_optimizer_and_scheduler": "what is trained beside the model is saved, before the state, the last file",
    "_set_signature_columns_if_needed": "`remove_unused_columns=True` is to keep what the collator reads",
    "_signature_columns": "the same",
    # datasets
    "_generate_examples": "what a builder is to define",
    "_info": "what a builder and a module of evaluate are to define",
    "_split_generators": "what a builder is to define",
    # evaluate
    "_compute": "what a module is to define",
    # Python
    "_exit": "of `os`: ends a process whose parent is gone, without its clean-up",
}


def test_all_private_names_of_others_are_listed_with_a_reason():
    others = ("tests", "build", "runs")
    folders = [path for path in REPOSITORY.glob("[!.]*/") if path.is_dir() and path.name not in others]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for folder in folders for path in folder.rglob("*.py")]
    assert private_names_of_others(trees) == set(PRIVATE)


def private_names_of_others(trees):
    """Underscore names that are read and not made here, or that our classes have and nobody here reads."""
    made, of_classes, read, of_others = set(), set(), set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef():
                made.add(node.name)
            case ast.ClassDef():
                of_classes.update(name for item in node.body for name in _names(item))
            case ast.Assign():
                made.update(target.attr for target in node.targets if _is_of_self(target))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                of_others.add(node.attr)
            case ast.Attribute() if isinstance(node.ctx, ast.Load) or not _is_of_self(node):
                read.add(node.attr)
            case ast.AugAssign(target=ast.Attribute()):
                read.add(node.target.attr)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value), *_]):
                read.add(value)
            case ast.ImportFrom(level=0):
                of_others.update(alias.name for alias in node.names)
    names = of_others | (read - made - of_classes) | (of_classes - read)
    return {name for name in names if name.startswith("_") and not name.startswith("__") and name != "_"}


def _names(item):
    """What a statement of a class defines."""
    targets = getattr(item, "targets", [getattr(item, "target", item)])
    return [getattr(target, "id", getattr(target, "name", "")) for target in targets]


def _is_of_self(target):
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
