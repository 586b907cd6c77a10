"""Hard ImageNet: 15 classes of ImageNet whose surroundings give them away."""

from ..build import ExplainedImages


class HardImageNet(ExplainedImages):
    """Hard ImageNet (Moayeri et al., 2022), with the pictures of ImageNet."""

    PRETTY_NAME = "Hard ImageNet"
    SUMMARY = "Pictures of ImageNet of 15 classes with strong spurious cues, with masks of the object."
    LAYOUT = "hard_imagenet"
