"""`pipeline("explained-image-classification")`, and `pipeline("image-classification")` with our rule for pictures."""

import torch
from transformers import ImageClassificationPipeline, Pipeline

from .processing_megl import MeglProcessor, open_image


class ExplainedImageClassificationPipeline(Pipeline):
    """
    The whole answer for each image, as [`~MeglForImageClassification.explain`] gives it.

    ```python
    from transformers import pipeline

    explain = pipeline("explained-image-classification", model="org/megl-vit-b16", trust_remote_code=True)
    explain("picture.jpg", target="house", foil="tree")
    ```

    Called with:
        images (`str`, `PIL.Image.Image` or a list of them): Pictures, their paths or URLs.
        target, foil (`str` or `int`, *optional*): Why this class, rather than that? By default, why the predicted one.
        top_k (`int`, *optional*): Number of classes to explain: that one, and the most probable others.
        threshold (`float`, *optional*): Of a multi-label model, the probability from which on others are explained,
            0.5 by default.
        max_new_tokens (`int`, *optional*): Greatest length of a rationale.
        generate_kwargs (`dict`, *optional*): Further options of [`~MeglForImageClassification.generate_rationales`].
        timeout (`float`, *optional*): Seconds to wait for a URL.

    Returns:
        `dict`, or a `list[dict]` for a list: `"label"`, `"score"` (its probability), `"saliency"` (`np.ndarray` of the
        picture's height and width, float32 in [0, 1]), `"coverage"` (share of the picture where that is above 0.5) and
        `"rationale"`; with `top_k` above 1, and of a multi-label model, also `"alternatives"`, a `list[dict]` with the
        same of each other class.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        target=None,
        foil=None,
        top_k=None,
        threshold=None,
        max_new_tokens=None,
        generate_kwargs=None,
        timeout=None,
    ):
        options = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        forward = {"target": target, "foil": foil, "top_k": top_k, "threshold": threshold, **options}
        return {"timeout": timeout}, {name: value for name, value in forward.items() if value is not None}, {}

    def preprocess(self, image, timeout=None):
        (image,) = self.processor.load_images(open_image(image, timeout))
        pixel_values = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.dtype)
        return {"pixel_values": pixel_values, "size": torch.tensor([[image.height, image.width]])}

    def _forward(self, inputs, **options):
        return {**self.model.explain_pixels(inputs["pixel_values"], self.processor, **options), "size": inputs["size"]}

    def postprocess(self, outputs):
        sizes = outputs.pop("size").tolist()
        return self.model.read_explanations(outputs, sizes, self.processor)[0]


class MeglImageClassificationPipeline(ImageClassificationPipeline):
    """
    Transformers' own, which by itself would clip pictures of 16 bits to white, take the first frame of an animation,
    and hand arrays past the checks: what [`MeglProcessor.load_images`] refuses is refused here as well. Its
    probabilities are those of [`~MeglForImageClassification.explain`], at the `score_temperature` of the model.
    """

    def preprocess(self, image, timeout=None):
        (image,) = MeglProcessor.load_images(open_image(image, timeout))
        return super().preprocess(image)

    def _forward(self, inputs):
        outputs = super()._forward(inputs)
        outputs["logits"] = outputs["logits"] / self.model.config.score_temperature
        return outputs


__all__ = ["ExplainedImageClassificationPipeline", "MeglImageClassificationPipeline"]
