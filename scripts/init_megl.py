"""Makes an untrained MEGL model for the classes of a data set, from a preset or from pretrained parts.

```
python scripts/init_megl.py --preset megl-resnet-tiny --dataset object_me --output megl-tiny
python scripts/init_megl.py --vision microsoft/resnet-18 --text HuggingFaceTB/SmolLM2-135M \
    --dataset object_me --output megl-resnet18-smollm2
```

`--text` takes a Hub id, a local folder, a GGUF file in a local folder, or the name of a small Llama to be trained from
scratch on the data set's rationales: `llama-small` or `llama-tiny`.
"""

import argparse
import sys

import torch

from modeling_megl import PRESETS, TEXT_PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.saliency_megl import SALIENCY_METHODS
from support.output_folder import new_folder
from support.tables import add_column_arguments, column_arguments, open_table


# Options that are fields of `MeglConfig`, which has the defaults.
CONFIGURED = ("saliency_method", "saliency_layer", "saliency_score", "rationale_gradient", "grounding_map")


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    vision = parser.add_mutually_exclusive_group(required=True)
    vision.add_argument("--preset", choices=sorted(PRESETS), help="known sizes, with random weights")
    vision.add_argument("--vision", help="Hub id or folder of a pretrained vision model")
    parser.add_argument("--text", default="llama-small", help="language model to put behind --vision")
    parser.add_argument("--dataset", required=True, help="data set whose classes and rationales the model is made for")
    parser.add_argument("--train_split", default="train", help="split that has them")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--saliency_method", choices=list(SALIENCY_METHODS), help="how the map is made")
    parser.add_argument("--saliency_layer", help="module of the vision model to compute maps on, if not the default")
    parser.add_argument("--saliency_score", choices=["logit", "contrast"], help="what the map explains")
    parser.add_argument(
        "--rationale_gradient",
        choices=["map", "map_and_features", "none"],
        help="where the rationale's loss may go in the vision model",
    )
    parser.add_argument(
        "--grounding_map",
        choices=["saliency", "uniform", "random", "visual_explanation"],
        help="which map weights the evidence that the rationale is written from; all but the first are ablations",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the random weights")
    parser.add_argument("--trust_remote_code", action="store_true", help="let --vision run its own code")
    add_column_arguments(parser)
    return parser


def make_model(arguments, labels, rationales):
    """The model and its processor."""
    settings = {name: getattr(arguments, name) for name in CONFIGURED if getattr(arguments, name)}
    if arguments.preset:
        processor = MeglProcessor.from_preset(arguments.preset, labels, rationales)
        config = MeglConfig.from_preset(arguments.preset, labels, **processor.text_config_kwargs())
        for name, value in settings.items():
            setattr(config, name, value)
        if arguments.saliency_layer:  # which may have another width
            config.feature_size = MeglForImageClassification(config).probe_saliency_layer()
        return MeglForImageClassification(config), processor
    parts = {"vision": arguments.vision, "trust_remote_code": arguments.trust_remote_code}
    if arguments.text in TEXT_PRESETS:
        processor = MeglProcessor.from_vision_pretrained(**parts, labels=labels, rationales=rationales)
        text = {**TEXT_PRESETS[arguments.text], **processor.text_config_kwargs()}
    else:
        processor = MeglProcessor.from_vision_text_pretrained(**parts, text=arguments.text)
        text = arguments.text
    model = MeglForImageClassification.from_vision_text_pretrained(**parts, text=text, labels=labels, **settings)
    return model, processor


def main():
    arguments = make_parser().parse_args()
    torch.manual_seed(arguments.seed)
    try:
        train = open_table(
            arguments.dataset, arguments.train_split, column_arguments(arguments), option="--train_split"
        )
        with new_folder(arguments.output) as folder:
            labels = train.features["label"].names
            rationales = [text for texts in train["textual_explanations"] for text in texts]
            model, processor = make_model(arguments, labels, rationales)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"init_megl: {error}")
    sizes = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters()) / 1e6
        for name in ("vision_model", "grounding", "language_model")
    }
    print(f"{arguments.output}: {len(labels)} classes, millions of parameters:")
    print(", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
