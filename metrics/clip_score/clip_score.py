"""CLIPScore and RefCLIPScore: how well texts fit their images, with and without references."""

import datasets
import evaluate
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel


_DESCRIPTION = """
CLIPScore (Hessel et al. 2021) measures how well a text fits its image: 2.5 times the cosine between their CLIP
embeddings, clipped at 0. RefCLIPScore is the harmonic mean of that and the best cosine to a reference text.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): one text per image.
    images (`list` of images): `PIL.Image.Image`, `uint8` arrays of shape `(H, W, 3)`, or paths. Still ones of 8 bits a
        channel.
    model_name_or_path (`str`): Hub id or local folder of a CLIP model with its tokenizer and image processor.
        Published figures use `openai/clip-vit-base-patch32`.
    references (`list` of `list` of `str`, *optional*): texts of each image, for `ref_clip_score`. Images without any,
        `[]` or `None`, are left out of it.
    batch_size (`int`, defaults to 32): images or texts that go through the model at once.
    device (`str`, *optional*): where the model runs; the GPU if there is one, else the CPU.
    local_files_only (`bool`, defaults to `False`): never look for the model on the Hub.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `clip_score` (in [0, 2.5], higher is better): mean over the items, `None` where there are none.
    `ref_clip_score` (in [0, 1.43], higher is better), when references are given: mean over the items that have any,
        `None` where none has.
    `n`: the number of items. `n_without_reference`, when references are given: of those without any.
    `n_truncated`: how many texts, predictions and references together, were longer than the model reads and were cut.
    `per_item`: with `per_item=True`, a dict of lists; `ref_clip_score` is `None` for an item without references.
Raises:
    `ValueError`: a text or an image that is `None`, or an image of more bits a channel or of several frames.
Examples:
    >>> import evaluate
    >>> from PIL import Image
    >>> clip_score = evaluate.load("metrics/clip_score")
    >>> images = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    >>> results = clip_score.compute(
    ...     predictions=["a red square", "a blue square"],
    ...     images=images,
    ...     references=[["a square, red"], ["a square, blue"]],
    ...     model_name_or_path="openai/clip-vit-base-patch32",
    ... )
    >>> sorted(results)
    ['clip_score', 'n', 'n_truncated', 'n_without_reference', 'ref_clip_score']
    >>> results["n"], results["n_truncated"], results["n_without_reference"]
    (2, 0, 0)
    >>> 0 <= results["clip_score"] <= 2.5
    True
"""

_CITATION = """
@inproceedings{hessel2021clipscore,
    title={{CLIPScore}: A Reference-free Evaluation Metric for Image Captioning},
    author={Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Le Bras, Ronan and Choi, Yejin},
    booktitle={EMNLP},
    year={2021}
}
"""

PREFIX = "A photo depicts "
WEIGHT = 2.5


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ClipScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                    "images": datasets.Image(),
                }
            ),
            reference_urls=["https://github.com/jmhessel/clipscore"],
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one text with its image and, optionally, its references."""
        check_picture(kwargs.get("images"), "images")
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add texts with their images and, optionally, their references."""
        check_pictures(kwargs.get("images"))
        # `evaluate` stores every declared input of every item. None is what is stored where no references are given,
        # and an empty list where an item has none.
        if references is not None:
            references = [[] if texts is None else texts for texts in references]
        elif predictions is not None:
            references = [None] * len(predictions)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def similarities(
        self, predictions, images, model_name_or_path, batch_size=32, device=None, local_files_only=False
    ):
        """
        The cosine of the CLIP embeddings of each text, after "A photo depicts ", and of each image.

        Args:
            predictions (`list` of `str`): texts, as many as you like.
            images (`list` of `PIL.Image.Image`): still ones of 8 bits a channel.
            model_name_or_path, batch_size, device, local_files_only: as in `compute`.

        Returns:
            `np.ndarray` of shape `(texts, images)`, values in [-1, 1].

        Raises:
            `ValueError`: a text that is `None`, or an image of more bits a channel or of several frames.
        """
        check_pictures(images)
        check_texts(predictions)
        encoder = ClipEncoder(model_name_or_path, batch_size, device, local_files_only)
        return (encoder.embed_texts(predictions) @ encoder.embed_images(images).T).numpy()

    def _compute(
        self,
        predictions,
        references,
        images,
        model_name_or_path=None,
        batch_size=32,
        device=None,
        local_files_only=False,
        per_item=False,
    ):
        if model_name_or_path is None:
            raise ValueError(
                "`model_name_or_path` must name a CLIP model or its folder, such as 'openai/clip-vit-base-patch32'."
            )
        check_items(predictions, references, images)
        encoder = ClipEncoder(model_name_or_path, batch_size, device, local_files_only)

        items = {}
        image_embeddings = encoder.embed_images(images)
        text_embeddings = encoder.embed_texts(predictions)
        clip_scores = WEIGHT * (image_embeddings * text_embeddings).sum(dim=-1).clamp(min=0)
        items["clip_score"] = clip_scores.tolist()
        with_references = any(texts is not None for texts in references)
        if with_references:
            references = [texts or [] for texts in references]
            flat = encoder.embed_texts([text for texts in references for text in texts])
            per_reference = flat.split([len(texts) for texts in references])
            items["ref_clip_score"] = [
                harmonic_mean(score, (targets @ text).max().clamp(min=0)).item() if len(targets) else None
                for score, targets, text in zip(clip_scores, per_reference, text_embeddings, strict=True)
            ]

        results = {name: mean(scores) for name, scores in items.items()}
        results["n"] = len(predictions)
        if with_references:
            results["n_without_reference"] = items["ref_clip_score"].count(None)
        results["n_truncated"] = encoder.n_truncated
        if per_item:
            results["per_item"] = items
        return results


def check_items(predictions, references, images):
    check_pictures(images)
    check_texts(predictions)
    for index, (texts, image) in enumerate(zip(references, images, strict=True)):
        if image is None:
            raise ValueError(f"`images[{index}]` must be an image, got None.")
        if texts and None in texts:
            raise ValueError(f"`references[{index}]` must be a list of strings, got {texts}.")


def check_texts(predictions):
    for index, prediction in enumerate(predictions):
        if prediction is None:
            raise ValueError(f"`predictions[{index}]` must be a string, got None.")


def check_pictures(images):
    """Refuse what RGB of 8 bits cannot hold: which values of a deep picture are black and white, only its owner knows.

    Called for what is given, since `evaluate` stores one frame of a picture in memory, and for what paths lead to.
    """
    for index, image in enumerate([] if images is None else images):
        check_picture(image, f"images[{index}]")


def check_picture(image, name):
    mode, kind = getattr(image, "mode", ""), str(getattr(image, "dtype", "uint8"))
    if mode.startswith(("I", "F")) or kind != "uint8":
        given = f"one of mode {mode}" if mode else f"an array of {kind}"
        raise ValueError(f"`{name}` must be a picture of 8 bits a channel, got {given}: scale it to 0 to 255.")
    # A camera's MPO holds the same picture several times.
    frames = 1 if getattr(image, "format", None) == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"`{name}` must be a still picture, got {frames} frames: pass the one that is meant.")


def mean(values):
    """The mean of the values that are not `None`, or `None`."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def harmonic_mean(first, second):
    total = first + second
    return torch.where(total > 0, 2 * first * second / total.clamp(min=1e-12), 0.0)


class ClipEncoder:
    """A CLIP model that turns lists of images or texts into unit vectors of shape `(n, projection_dim)`."""

    def __init__(self, model_name_or_path, batch_size, device, local_files_only):
        options = {"local_files_only": local_files_only}
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = CLIPModel.from_pretrained(model_name_or_path, **options).eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **options)
        self.image_processor = AutoImageProcessor.from_pretrained(model_name_or_path, **options)
        self.max_length = min(self.model.config.text_config.max_position_embeddings, self.tokenizer.model_max_length)
        self.batch_size = batch_size
        self.n_truncated = 0

    def embed_images(self, images):
        return self._embed(images, self._embed_image_batch, "CLIP images")

    def embed_texts(self, texts):
        return self._embed([PREFIX + text for text in texts], self._embed_text_batch, "CLIP texts")

    @torch.no_grad()
    def _embed(self, items, embed_batch, description):
        embeddings = [torch.zeros(0, self.model.config.projection_dim)]
        for start in evaluate.utils.logging.tqdm(range(0, len(items), self.batch_size), desc=description):
            features = embed_batch(items[start : start + self.batch_size]).pooler_output
            embeddings.append(torch.nn.functional.normalize(features, dim=-1).float().cpu())
        return torch.cat(embeddings)

    def _embed_image_batch(self, images):
        inputs = self.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        return self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device))

    def _embed_text_batch(self, texts):
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        self.n_truncated += sum(length > self.max_length for length in lengths)
        inputs = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        ).to(self.device)
        return self.model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
