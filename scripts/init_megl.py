"""Makes a MEGL model for the classes of a data set, from a preset, from pretrained parts or from a trained MEGL model.

```
megl init --preset megl-resnet-tiny --dataset object_me --output megl-tiny
megl init --vision microsoft/resnet-18 --text smollm2 --dataset object_me --output megl-resnet18
megl init --model megl-trained --dataset action_me --output megl-action
megl init --model megl-trained --text smollm2 --dataset object_me --output megl-writer
```

`--text` takes a Hub id, a local folder, a GGUF file in a local folder, `smollm2` for SmolLM2-135M-Instruct, or the
name of a small Llama to be trained from scratch on the data set's rationales: `llama-small` or `llama-tiny`. Beside
`--preset` it takes the place of the preset's language model. Of `--model`, everything is kept but the vision model's
head, which is new: classes that both data sets name keep their rows of it. `--text` beside it gives a trained
classifier another writer, to be trained by `--freeze_vision --visual_loss_weight 0`: label and map stay. A data set
whose labels are lists makes a multi-label model.
"""

import copy
import sys

import torch

from dataset_builders.files import new_folder
from megl.arguments import ColumnArguments, InitArguments
from megl.parser import parse
from megl.tables import class_names, labelled_texts, open_table, problem_type
from megl.terminal import program
from modeling_megl import PRESETS, TEXT_PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import PRETRAINED_TEXTS, one_line, read_config


# Options that are settings of `MeglProcessor` or fields of `MeglConfig`, which have the defaults.
PROCESSED = ("rationale_prompt", "max_rationale_length")
CONFIGURED = (
    *("saliency_method", "saliency_layer", "saliency_score", "evidence_layers", "rationale_gradient", "grounding_map"),
    *PROCESSED,
)

# What SmolLM2-135M-Instruct learnt best by, of ranks 8 and 16 and learning rates from 1e-4 to 3e-3.
FOR_PRETRAINED_TEXT = "--lora_rank 16 --text_learning_rate 3e-3"
# What the studies train the tiny presets by, from scratch, on 1,200 pictures. The Trainer's defaults, for pretrained
# models, teach these nothing.
FROM_SCRATCH = "--num_train_epochs 36 --lr_scheduler_type cosine --warmup_steps 50 --learning_rate"
FOR_PRESETS = {"megl-resnet-tiny": "3e-3", "megl-swin-tiny": "1e-3", "megl-vit-tiny": "1e-3"}
# What a preset says of the evidence, whatever language model reads it.
OF_PRESET = ("evidence_size", "evidence_layers", "saliency_score")


def chosen(arguments):
    """What the user chose of the settings of `MeglConfig`, and of those of `MeglProcessor`."""
    settings = {name: getattr(arguments, name) for name in CONFIGURED if getattr(arguments, name) is not None}
    if settings.get("evidence_layers") == ["none"]:
        settings["evidence_layers"] = []
    return settings, {name: settings.pop(name) for name in PROCESSED if name in settings}


def make_model(arguments, labels, rationales):
    """A model of a preset or of pretrained parts, and its processor."""
    settings, texts = chosen(arguments)
    if arguments.preset and not arguments.text:
        return make_preset(arguments, labels, rationales, settings, texts)
    parts = {"vision": arguments.vision, "trust_remote_code": arguments.trust_remote_code}
    if arguments.preset:
        preset = PRESETS[arguments.preset]
        parts["vision"] = preset["vision_config"]
        settings = {name: preset[name] for name in OF_PRESET if name in preset} | settings
    elif read_config(arguments.vision).get("model_type") == MeglConfig.model_type:
        raise ValueError(
            f"{arguments.vision} is a MEGL model: take it to the new classes by `--model` in place of `--vision`."
        )
    text, processor = make_text(arguments, parts, labels, rationales, texts)
    model = MeglForImageClassification.from_vision_text_pretrained(**parts, text=text, labels=labels, **settings)
    return model, processor


def make_text(arguments, parts, labels, rationales, texts):
    """What `--text` names as the model takes it, and the processor of vision model and language model."""
    text = arguments.text or "llama-small"
    if text in TEXT_PRESETS:
        if arguments.chat_template:
            raise ValueError(f"`--chat_template` goes with a pretrained `--text`, {text} has none: leave it out.")
        processor = MeglProcessor.from_vision_pretrained(**parts, labels=labels, rationales=rationales, **texts)
        text = {**TEXT_PRESETS[text], **processor.text_config_kwargs()}
    else:
        text = PRETRAINED_TEXTS.get(text, text)
        processor = MeglProcessor.from_vision_text_pretrained(
            **parts, text=text, chat_template=arguments.chat_template, **texts
        )
    processor.check_prompts(labels)  # before the models are loaded
    return text, processor


def make_preset(arguments, labels, rationales, settings, texts):
    """A model of a preset, and its processor."""
    processor = MeglProcessor.from_preset(arguments.preset, labels, rationales, **texts)
    config = MeglConfig.from_preset(arguments.preset, labels, **processor.text_config_kwargs())
    layers = settings.pop("evidence_layers", None)
    for name, value in settings.items():
        setattr(config, name, value)
    if arguments.saliency_layer:  # which may have another width
        config.feature_size = MeglForImageClassification(config).probe_saliency_layer()
    read_from(layers, config)
    return MeglForImageClassification(config), processor


def read_from(layers, config):
    """Have the rationale written from these earlier layers as well; `None` leaves the config as it is."""
    if layers is None:
        return
    found = MeglForImageClassification(config).probe_evidence_layers(layers)
    config.evidence_layers, config.evidence_sizes = found
    config.num_evidence_tokens = max(config.num_evidence_tokens, 2 + len(found[0]))


def take_over(arguments, labels, rationales):
    """
    A trained model and its processor with other classes: the vision model's body, the grounding and the language model
    stay, and the head is new but for the rows of classes that stay. With `--text`, grounding and language model are
    new ones too.
    """
    settings, texts = chosen(arguments)
    old_processor = MeglProcessor.from_pretrained(arguments.model)
    if arguments.text:
        texts = {"rationale_prompt": old_processor.rationale_prompt, **texts}
        parts = {"vision": arguments.model, "trust_remote_code": arguments.trust_remote_code}
        text, processor = make_text(arguments, parts, labels, rationales, texts)
        layers = settings.pop("evidence_layers", None)
        model = with_classes(arguments, labels, settings)
        read_from(layers, model.config)
        return model.with_language_model(text), processor
    texts = {option: texts.get(option, getattr(old_processor, option)) for option in PROCESSED}
    processor = MeglProcessor(
        old_processor.image_processor, old_processor.tokenizer, chat_turns=old_processor.chat_turns, **texts
    )
    return with_classes(arguments, labels, settings), processor


def with_classes(arguments, labels, settings):
    """The trained model with other settings and classes; the head has its rows of those that stay."""
    trained = MeglForImageClassification.from_pretrained(
        arguments.model, dtype=torch.float32, trust_remote_code=arguments.trust_remote_code
    )
    config = copy.deepcopy(trained.config)
    config.id2label = dict(enumerate(labels))
    for option, value in settings.items():
        setattr(config, option, value)
    model, old = MeglForImageClassification(config), trained.state_dict()
    kept = [(labels.index(label), row) for row, label in trained.config.id2label.items() if label in labels]
    head = head_names(config)
    state = {}
    for key, value in model.state_dict().items():
        if key in head:
            for row, old_row in kept:
                value[row] = old[key][old_row]
        state[key] = value if key in head else old[key]
    model.load_state_dict(state)
    channels = model.probe_saliency_layer()
    if channels != config.feature_size:
        raise ValueError(
            f"`--saliency_layer {config.saliency_layer}` has {channels} channels, the trained "
            f"grounding takes {config.feature_size}: leave the option out."
        )
    return model


def head_names(config):
    """Names of the parameters that have a row for each class: those that another class changes the shape of."""
    wider = copy.deepcopy(config)
    wider.id2label = dict(enumerate(range(len(config.id2label) + 1)))
    with torch.device("meta"):
        shapes, wider_shapes = (
            {key: value.shape for key, value in MeglForImageClassification(each).state_dict().items()}
            for each in (config, wider)
        )
    return {key for key, shape in shapes.items() if wider_shapes[key] != shape}


def report_cut(processor, label_names, rationales):
    """How many rationales are longer than the processor takes, a line; nothing where none is."""
    lengths = processor.rationale_lengths(label_names, rationales)
    cut = sum(length > processor.max_rationale_length for length in lengths)
    if cut:
        print(
            f"{cut} of {len(lengths)} rationales are longer than {processor.max_rationale_length} tokens with their "
            f"prompt, and will be cut: none would be at --max_rationale_length {max(lengths)}."
        )


def main():
    arguments, columns = parse(__doc__, InitArguments, ColumnArguments)
    torch.manual_seed(arguments.seed)
    try:
        train = open_table(arguments.dataset, arguments.train_split, columns, option="--train_split", multi_label=True)
        with new_folder(arguments.output) as folder:
            labels, pairs = class_names(train), labelled_texts(train)
            label_names, rationales = [name for name, _ in pairs], [text for _, text in pairs]
            if arguments.model:
                model, processor = take_over(arguments, labels, rationales)
            else:
                model, processor = make_model(arguments, labels, rationales)
            model.config.problem_type = problem_type(train)
            model.match_processor(processor)
            report_cut(processor, label_names, rationales)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")
    sizes = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters()) / 1e6
        for name in ("vision_model", "grounding", "language_model")
    }
    print(f"{arguments.output}: {len(labels)} classes, millions of parameters:")
    print(", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
    if arguments.preset in FOR_PRESETS:
        print(f"From scratch it learns best by: megl train {FROM_SCRATCH} {FOR_PRESETS[arguments.preset]} ...")
    if model.config.text_base_model is not None:
        print(f"A pretrained language model learns best by: megl train {FOR_PRETRAINED_TEXT} ...")


if __name__ == "__main__":
    main()
