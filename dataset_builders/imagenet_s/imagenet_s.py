"""ImageNet-S: 50, 300 or 919 classes of ImageNet with semantic segmentations."""

from ..build import ExplainedImages


class ImageNetS(ExplainedImages):
    """ImageNet-S (Gao et al., 2021, arXiv:2106.03149)."""

    PRETTY_NAME = "ImageNet-S"
    SUMMARY = "Pictures of ImageNet, with masks of what the class names."
    LAYOUT = "imagenet_s"
