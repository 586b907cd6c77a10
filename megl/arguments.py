"""What each command takes, checked: a dataclass for each, and one for the columns of a data set."""

from dataclasses import dataclass, field, fields
from typing import Literal

from megl.evaluation.conditions import read_condition


SaliencyMethod = Literal[
    "grad_cam",
    "grad_cam_elementwise",
    "hires_cam",
    "layer_cam",
    "grad_cam_plus_plus",
    "xgrad_cam",
    "input_x_gradient",
    "attention_rollout",
    "attention_relevance",
]
# What a model's card reports of its training.
RECORDED = (
    "visual_loss_weight",
    "text_loss_weight",
    "distribution_loss_weight",
    "visual_loss",
    "res_slack",
    "distribution_statistic",
    "recombine",
    "learning_rate",
    "text_learning_rate",
    "frozen_layer",
    "freeze_vision",
    "lora_rank",
    "class_weights",
    "label_smoothing_factor",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "seed",
)


def option(help, default=None, **settings):
    """A field of a command's dataclass: its help, its default, and settings of `ArgumentParser.add_argument`."""
    return field(default=default, metadata={"help": help, **settings})


def required(help, **settings):
    """A field that has to be given."""
    return field(metadata={"help": help, **settings})


def check_lowest(arguments, **lowest):
    """Refuse numbers below the lowest that make sense, in the words of the command line."""
    for name, least in lowest.items():
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"`--{name}` must be {least} or more, got {value}")


def check_port(port):
    if not 0 <= port <= 65535:
        raise ValueError(f"`--port` must be 0 to 65535, got {port}")


def given_options(arguments, but=()):
    """
    What a command was given beyond its defaults, as words of a command line.

    Args:
        arguments: An instance of one of the dataclasses.
        but (`tuple` of `str`): Names of fields to leave out, the positional ones among them.
    """
    words = []
    for each in fields(arguments):
        value = getattr(arguments, each.name)
        if each.name in but or value == each.default:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{each.name}", *([] if value is True else map(str, values))]
    return words


def shared_options(columns, trust_remote_code):
    """The options of a command line that its successors need as well: names of columns, and trust."""
    return [*given_options(columns), *(["--trust_remote_code"] if trust_remote_code else [])]


@dataclass
class ColumnArguments:
    """What the columns of the data set are called."""

    image_column: str = option("Column of the pictures.", "image")
    label_column: str = option(
        "Column of the classes: names, numbers or a `ClassLabel`; -1 is unknown.", default="label"
    )
    visual_explanation_column: str = option(
        "Column of the human maps, if any: pictures, or null.", default="visual_explanation"
    )
    textual_explanations_column: str = option(
        "Column of the rationales, if any: a text or a list of texts.", default="textual_explanations"
    )
    id_column: str = option("Column of the items' names; without, the rows' numbers.", default="id")
    group_column: str = option("Column of the items' groups, if any.", default="group")


# Data sets that `megl prepare` reads as they are published: each has a builder and a layout of its own.
PUBLISHED = Literal["waterbirds", "cub", "pets", "hard_imagenet", "imagenet_s"]


@dataclass(kw_only=True)
class PrepareArguments:
    """What to make a data set of."""

    builder: Literal["action_me", "object_me", PUBLISHED] = required("What to build.", positional=True)
    source: str = required("Folder in one of the layouts, or the word `sample`.")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    layout: Literal["release", "act_x", "vqa_x", "image_folder", "coco", PUBLISHED] | None = option(
        "The source's layout; told from its files by default."
    )
    images: str | None = option("Folder of the pictures, where they are not in the source folder.")
    seed: int = option("Draws the sample, or the split of a source without one.", 0)
    validation_share: float | None = option(
        "Share of each class in a drawn split; 0.1 by default, 0 of what has published splits."
    )
    test_share: float | None = option("The same of the test split; 0.2 by default, 0 of what has published splits.")
    activity_level: Literal["full", "first"] | None = option("ACT-X: all of an answer, or its first part.")
    explain_category: bool = option("COCO: the label's masks explain it.", False)
    masks: str | None = option("Birds: folder of CUB's `segmentations`, where it is not in the source folder.")
    captions: str | None = option("Birds: folder of Reed et al.'s `text_c10`, where it is not in the source folder.")
    four_groups: bool = option("Waterbirds: groups by label and place, as published worst-group figures have.", False)
    on_error: Literal["stop", "skip"] = option("What to do about a bad item.", "stop")
    num_proc: int = option("Processes, each of which writes files of its own.", 1)
    max_shard_size: str = option("Greatest size of a Parquet file.", "200MB")
    name: str | None = option("The data set's name in the card; of own pictures, that of their folder by default.")
    language: list[str] | None = option("ISO 639 codes of the rationales' languages, for the card.")
    description: str | None = option("What the pictures show, for the card.")
    license: str | None = option("Licence to name in the card.")
    overwrite: bool = option("Replace all that is in the output folder.", False)
    push_to_hub: str | None = option("Upload to this data set repository, private if new.", metavar="REPOSITORY")
    public: bool = option("Let the repository be public.", False)

    def __post_init__(self):
        if self.public and not self.push_to_hub:
            raise ValueError("`--public` says who may see what `--push_to_hub` uploads, which is not asked for")


@dataclass(kw_only=True)
class AnnotateArguments:
    """What to annotate."""

    dataset: str = required("Folder of pictures, annotated before or not.", positional=True, metavar="DATASET")
    labels: str | None = option(
        "Classes, joined by commas, besides those that sub-folders and metadata.jsonl name.", metavar="LABEL,LABEL"
    )
    model: str | None = option("Hub id or folder of a MEGL model, or of any image classifier, that suggests.")
    name: str | None = option("Who annotates, for the log; the user's name by default. The page can change it.")
    port: int = option("Port on this machine; a free one by default.", 0)
    import_coco: str | None = option("COCO instances to take in, instead of serving.", metavar="FILE")
    import_label_studio: str | None = option("Label Studio tasks to take in, instead of serving.", metavar="FILE")
    export_coco: str | None = option("COCO instances to write, instead of serving.", metavar="FILE")
    export_label_studio: str | None = option("Label Studio tasks to write, instead of serving.", metavar="FILE")
    trust_remote_code: bool = option("Let the model run its own code.", False)

    def __post_init__(self):
        check_port(self.port)


@dataclass(kw_only=True)
class InspectArguments:
    """What to look at."""

    dataset: str = required("Folder of a data set that `megl prepare` wrote.", positional=True, metavar="DATASET")
    output: str = required("Page to write.", metavar="NAME.html")
    json: bool = option("Also write the figures and warnings to NAME.json.", False)
    examples: int = option("Pictures on the page, spread over the classes.", 24)
    overwrite: bool = option("Replace files that exist.", False)

    def __post_init__(self):
        check_lowest(self, examples=0)


@dataclass(kw_only=True)
class InitArguments:
    """What to make a model of, and for which classes."""

    preset: Literal["megl-resnet-tiny", "megl-resnet18", "megl-swin-tiny", "megl-vit-b16", "megl-vit-tiny"] | None = (
        option("Known sizes, with random weights.")
    )
    vision: str | None = option("Hub id or folder of a pretrained vision model.")
    model: str | None = option("Hub id or folder of a trained MEGL model, to be taken to the new classes.")
    text: str | None = option(
        "Language model to put behind --vision, `llama-small` by default, or in place of that of --preset or --model."
    )
    dataset: str = required("Data set whose classes and rationales the model is made for.")
    train_split: str = option("Split that has them.", "train")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    rationale_prompt: str | None = option(
        "What the rationale continues, in any language, with {label} for the class; 'This is a {label} because' by "
        "default, or that of --model."
    )
    max_rationale_length: int | None = option(
        "Tokens of prompt, rationale and end of text; longer ones are cut. 64 by default, besides those of a chat "
        "template, or that of --model."
    )
    chat_template: bool = option("Put prompt and rationale into the chat template of a pretrained --text.", False)
    saliency_method: SaliencyMethod | None = option("How the map is made.")
    saliency_layer: str | None = option("Module of the vision model to compute maps on, if not the default.")
    saliency_score: Literal["logit", "contrast"] | None = option("What the map explains.")
    evidence_layers: list[str] | None = option(
        "Earlier modules of the vision model that the rationale is written from as well, for colour and texture: "
        "names, `auto`, or `none`; by default those of the preset, and none beside --vision."
    )
    rationale_gradient: Literal["map", "map_and_features", "none"] | None = option(
        "Where the rationale's loss may go in the vision model."
    )
    grounding_map: Literal["saliency", "uniform", "random", "visual_explanation"] | None = option(
        "Which map weights the evidence that the rationale is written from; all but the first are ablations."
    )
    seed: int = option("Draws the random weights.", 0)
    trust_remote_code: bool = option(
        "Let the vision model run its own code; a language model's own code is never run.", False
    )

    def __post_init__(self):
        given = [f"`--{name}`" for name in ("preset", "vision", "model") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"one of `--preset`, `--vision` and `--model` is needed, got {' and '.join(given) or 'none'}"
            )
        if self.chat_template and not self.text:
            raise ValueError("`--chat_template` goes with a pretrained `--text`, which has one")
        if self.evidence_layers and self.model and not self.text:
            raise ValueError(
                "`--evidence_layers` goes beside `--model` with `--text` alone: a trained text part keeps its own"
            )
        if len(self.evidence_layers or []) > 1 and {"auto", "none"} & set(self.evidence_layers):
            raise ValueError(f"`--evidence_layers` takes names, or `auto` or `none` alone, got {self.evidence_layers}")


@dataclass(kw_only=True)
class TrainArguments:
    """What to train on what."""

    model_name_or_path: str = required(
        "Hub id or folder of a MEGL model (`megl init` makes one), or a preset's name: a new model for the data set."
    )
    dataset_name: str = required(
        "Hub id or folder of a data set: what `megl prepare` wrote, or `megl annotate`, as a split `train`."
    )
    train_split: str = option("Split to train on.", "train")
    eval_split: str = option("Split to evaluate on; never the test split.", "validation")
    mask_share: float = option(
        "Share of the training split's visual explanations to use; a smaller one is a subset.", 1.0
    )
    rationale_share: float = option(
        "Share of its pictures with rationales that keep them; a smaller one is a subset.", 1.0
    )
    share_seed: int = option("Draws which items keep their explanations.", 0)
    explanation_sheet: int = option(
        "Pictures of --eval_split that are explained at each evaluation, on a sheet in the output folder and where "
        "--report_to says.",
        0,
    )
    training_page: bool = option(
        "Show the training as a page, training.html in the output folder, anew at each evaluation and at the end: "
        "curves, sheets of explanations, figures, settings.",
        False,
    )
    trust_remote_code: bool = option("Let the vision model run its own code.", False)

    def __post_init__(self):
        check_lowest(self, explanation_sheet=0)
        for name in ("mask_share", "rationale_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`--{name}` must lie in [0, 1], got {getattr(self, name)}")


@dataclass(kw_only=True)
class EvaluateArguments:
    """What to evaluate on what."""

    model: list[str] = required("Hub ids or folders of MEGL models.")
    dataset: str = required("Hub id or folder of a data set.")
    split: str = option("Split to evaluate on.", "test")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    clip: str | None = option("CLIP model for CLIPScore and grounding; none is downloaded unless asked.")
    faithfulness: Literal["blur", "mean", "noise"] | None = option(
        "Also score the maps by deleting and inserting pixels, with this in their place, `blur` if none is named, and "
        "by filling them in (ROAD); takes 92 passes through the vision model for each image.",
        nargs="?",
        const="blur",
    )
    interventions: str | None = option(
        "Also score what becomes of labels and rationales where backgrounds are exchanged, and of labels on objects "
        "and backgrounds alone, for pictures with human maps; backgrounds come from the split that is named, or from "
        "that of --split.",
        nargs="?",
        const="",
        metavar="SPLIT",
    )
    calibrate: str | None = option(
        "First fit the temperature of the probabilities on this split, `validation` if none is named, and store it in "
        "the model's folder.",
        nargs="?",
        const="validation",
        metavar="SPLIT",
    )
    batch_size: int = option("Pictures at a time.", 32)
    max_new_tokens: int = option("Greatest length of a rationale.", 40)
    examples: int = option("Pictures in the report, evenly spaced over the split.", 24)
    resamples: int = option("Resamples of the bootstrap.", 2000)
    seed: int = option("Draws the resamples, the pairs of the control, and the backgrounds.", 0)
    update_card: bool = option(
        "Enter the figures into the README.md of the model's folder, and keep what else stands there.", False
    )
    dataset_id: str | None = option("Hub id of the data set for the card, where --dataset is a folder.")
    trust_remote_code: bool = option("Let the vision model run its own code.", False)

    def __post_init__(self):
        check_lowest(self, batch_size=1, max_new_tokens=1, examples=0, resamples=1, seed=0)
        if self.calibrate == self.split:
            raise ValueError(f"`--calibrate` must name another split than `--split`, got {self.split} as both")


@dataclass(kw_only=True)
class AuditArguments:
    """Which classifier to audit, and on what."""

    model: str = required("Hub id or folder of an image classifier.", positional=True, metavar="MODEL")
    dataset: str = required("Hub id or folder of a data set.", positional=True, metavar="DATASET")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    beside: str | None = option("Another classifier, which the first is shown beside.", metavar="MODEL")
    fail_if: list[str] | None = option(
        "Exit with status 3 where a figure of MODEL in audit.json fulfils one of these conditions, such as "
        "'background_gap>0.1' (in quotes), or is not to be had.",
        metavar="CONDITION",
    )
    split: str | None = option("Split to audit; the first that there is of test, validation and train by default.")
    backgrounds: str | None = option(
        "Split that gives the backgrounds; train by default, if it has masks, and else the audited one."
    )
    saliency_method: SaliencyMethod | None = option("How the map is made; a MEGL model's own, or grad_cam.")
    saliency_layer: str | None = option("Module to compute maps on, if not the default.")
    batch_size: int = option("Pictures at a time.", 32)
    examples: int = option("Pictures of each kind on the page.", 6)
    resamples: int = option("Resamples of the bootstrap.", 2000)
    seed: int = option("Draws the resamples and the backgrounds.", 0)
    trust_remote_code: bool = option("Let the classifiers run their own code.", False)

    def __post_init__(self):
        check_lowest(self, batch_size=1, examples=0, resamples=1, seed=0)
        for condition in self.fail_if or ():
            read_condition(condition)


@dataclass(kw_only=True)
class CompareArguments:
    """Which evaluations to compare."""

    evaluations: list[str] = required("What `megl evaluate` wrote, two or more.", positional=True, metavar="FOLDER")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    resamples: int = option("Resamples of the bootstrap.", 2000)
    seed: int = option("Draws the resamples.", 0)

    def __post_init__(self):
        if len(self.evaluations) < 2:
            raise ValueError(f"two or more folders are needed, got {self.evaluations[0]} alone")
        check_lowest(self, resamples=1, seed=0)


@dataclass(kw_only=True)
class ExplainArguments:
    """What to explain."""

    model: str = required("Hub id or folder of a MEGL model.")
    images: list[str] = required("Picture files.", positional=True, metavar="IMAGE")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    target: str | None = option("Class to explain, by name or id; by default the predicted one.")
    foil: str | None = option("Class that it is contrasted with: why --target rather than that?")
    top_k: int = option("Classes to explain: that one, and the most probable others.", 1)
    threshold: float | None = option(
        "Of a multi-label model: probability from which on other classes are explained too, 0.5 by default."
    )
    batch_size: int = option("Pictures at a time.", 8)
    trust_remote_code: bool = option("Let the vision model run its own code.", False)

    def __post_init__(self):
        check_lowest(self, batch_size=1, top_k=1)


@dataclass(kw_only=True)
class DemoArguments:
    """Which model to show, and to whom."""

    model: str = required("Hub id or folder of a MEGL model.", positional=True, metavar="MODEL")
    beside: str | None = option("Another one, which the first is shown beside.", metavar="MODEL")
    examples: str | None = option("Hub id or folder of a data set, or a folder of pictures: six are offered.")
    port: int = option("Port; by default the first free one from 7860 on.", 0)
    host: str = option(
        "Address to listen on; others than this machine's own can be reached from outside.", "127.0.0.1"
    )
    space: str | None = option("Write a Space to this folder, instead of serving.", metavar="FOLDER")
    trust_remote_code: bool = option("Let the vision models run their own code.", False)

    def __post_init__(self):
        check_port(self.port)


@dataclass(kw_only=True)
class PushArguments:
    """What to upload, and where to."""

    model: str = required("Folder of a trained model.", positional=True, metavar="FOLDER")
    repository: str = required("Where to, such as me/birds.", positional=True, metavar="REPOSITORY")
    license: str | None = option("Licence to name in the card.")
    dataset_id: list[str] | None = option("Hub ids of the data sets that it was trained on, for the card.")
    public: bool = option("Let the repository be public.", False)
    dry_run: bool = option("List the files and upload nothing; no token is needed.", False)


@dataclass(kw_only=True)
class ExportArguments:
    """What to write as a graph, and how."""

    model: str = required("Hub id or folder of a MEGL model.", positional=True, metavar="MODEL")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    format: Literal["onnx", "torch"] = option("ONNX, or a program of torch.export.", "onnx")
    trust_remote_code: bool = option("Let the vision model run its own code.", False)
