"""An image classifier of Transformers' Auto classes as it is, and its saliency maps, for evaluation."""

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForImageClassification

from modeling_megl import MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import check_remote_code, faults, one_line, read_config
from modeling_megl.modeling_megl import MeglOutput
from modeling_megl.saliency_megl import SALIENCY_METHODS, compute_saliency, explained_scores
from modeling_megl.tap_megl import open_tap, probe_tap


class Classifier(nn.Module):
    """
    An image classifier with maps of the classes that it predicts: as much of a MEGL model as labels and maps need.

    Args:
        vision_model (`nn.Module`): The classifier, in evaluation mode; its class scores are taken as they are.
        saliency_method, saliency_layer, saliency_score, score_temperature: As in [`MeglConfig`].
    """

    def __init__(
        self,
        vision_model,
        saliency_method="grad_cam",
        saliency_layer=None,
        saliency_score="logit",
        score_temperature=1.0,
    ):
        super().__init__()
        self.vision_model, self.config = vision_model, vision_model.config
        self.saliency_method, self.saliency_score = saliency_method, saliency_score
        self.saliency_layer = saliency_layer or getattr(self.config, "saliency_layer", None)
        self.score_temperature = score_temperature

    @property
    def device(self):
        return next(self.parameters()).device

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    @property
    def class_names(self):
        """In the order of their ids."""
        return [self.config.id2label[number] for number in range(self.config.num_labels)]

    def forward(self, pixel_values, output_saliency=True):
        """
        `logits` of shape `(batch_size, num_labels)` of pictures `(batch_size, 3, height, width)`, and with
        `output_saliency` the `saliency` of the predicted classes, `(batch_size, map_height, map_width)` in [0, 1].
        """
        if not output_saliency:
            return MeglOutput(logits=self.vision_model(pixel_values).logits)
        shape, reads = tuple(pixel_values.shape[-2:]), SALIENCY_METHODS[self.saliency_method].reads
        with open_tap(self.vision_model, self.saliency_layer, shape, False, reads) as tap:
            logits = tap(pixel_values)
            with torch.enable_grad():
                scores = explained_scores(logits, logits.argmax(dim=-1), self.saliency_score)
            saliency = compute_saliency(tap, scores, self.saliency_method)
        return MeglOutput(logits=logits.detach(), saliency=saliency.detach())

    def probabilities(self, logits):
        """Of class scores `(batch_size, num_labels)`."""
        return (logits.float() / self.score_temperature).softmax(dim=-1)


def load_classifier(name, saliency_method=None, saliency_layer=None, trust_remote_code=False):
    """
    A classifier and the processor of its pictures, which is its own but for the crop.

    Args:
        name (`str`): Hub id or folder of an image classifier, or of a MEGL model, whose vision model is taken.
        saliency_method, saliency_layer (`str`, *optional*): As in [`MeglConfig`]; by default those of a MEGL model,
            Grad-CAM, and what is found from the model's structure.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether its own code may run.

    Returns:
        `(Classifier, MeglProcessor)`.

    Raises:
        `ValueError`, `OSError`: in one line, where it is no image classifier, where weights of it are missing, and
            where it gives no map or does not take the pictures that its image processor makes.
    """
    chosen = {"saliency_method": saliency_method, "saliency_layer": saliency_layer}
    chosen = {setting: value for setting, value in chosen.items() if value is not None}
    if is_megl(name):
        processor = MeglProcessor.from_pretrained(name)
        model = MeglForImageClassification.from_pretrained(name, trust_remote_code=trust_remote_code)
        if model.config.is_multi_label:
            raise ValueError(
                f"{name} is a multi-label model, which cannot be audited: an audit is of one label a picture."
            )
        settings = ("saliency_method", "saliency_layer", "saliency_score", "score_temperature")
        chosen = {setting: getattr(model.config, setting) for setting in settings} | chosen
        classifier = Classifier(model.vision_model, **chosen)
    else:
        classifier = Classifier(_load_model(name, trust_remote_code), **chosen)
        processor = MeglProcessor.from_vision_pretrained(name, classifier.class_names, [], trust_remote_code)
    classifier.eval()
    size = processor.image_processor.size
    try:
        probe_tap(classifier.vision_model, classifier.saliency_layer, (size["height"], size["width"]))
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size["height"], size["width"]))
    except ValueError as error:
        raise ValueError(f"{name}: {one_line(error)}") from error
    return classifier, processor


def is_megl(name):
    """Whether a Hub id or folder is a MEGL model."""
    return read_config(name).get("model_type") == MeglConfig.model_type


def _load_model(name, trust_remote_code):
    check_remote_code(read_config(name), name, trust_remote_code)
    with faults(f"{name} cannot be loaded as its config.json says", but=ValueError):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and "auto_map" not in config.to_dict():
        raise ValueError(
            f"{name} must be an image classifier that AutoModelForImageClassification knows, got a model of type "
            f"{config.model_type!r}."
        )
    options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": trust_remote_code}
    try:
        with faults(f"{name} cannot be loaded as its config.json says", but=ValueError):
            model, report = AutoModelForImageClassification.from_pretrained(name, config=config, **options)
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is not installed: {one_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} is no trained image classifier: it has no weights for {', '.join(missing[:3])}, which would be "
            "random. Give it a head by training it on the classes first."
        )
    return model


def match_classes(classifier, name, class_names, data):
    """
    Make sure that the classes of a data set are among those of a classifier, by name or, where either has no names,
    by their order; then the classifier takes the data set's names.

    Args:
        classifier ([`Classifier`]), name (`str`): The classifier, and what errors call it.
        class_names (`list[str]`), data (`str`): The data set's, and what errors call it.

    Returns:
        `str` or `None`: which class was taken for which, where their order decides (of numbers, as numbers).

    Raises:
        `ValueError`: where they are not.
    """
    own = classifier.class_names
    if set(class_names) <= set(own):
        return None
    nameless = not has_names(classifier) or all(each.isdecimal() for each in class_names)
    if not nameless or len(own) != len(class_names):
        raise ValueError(
            f"The classes of {data} are not those of {name}: the data set has {_listed(class_names)}, the model "
            f"{_listed(own)}. Expected the same names, or as many classes where the model has no names."
        )
    ordered = sorted(class_names, key=int) if all(each.isdecimal() for each in class_names) else class_names
    classifier.config.id2label = dict(enumerate(ordered))
    pairs = [f"{mine} is {theirs}" for mine, theirs in zip(own, ordered, strict=True)]
    return f"The classes of {name} and {data} are matched by their order: {_listed(pairs)}."


def has_names(classifier):
    """Whether the classes have other names than those that Transformers gives to nameless ones."""
    return classifier.class_names != [f"LABEL_{number}" for number in range(classifier.config.num_labels)]


def _listed(names, most=8):
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,} ({', '.join(names[:most])}{rest})"
