"""CUB-200-2011: which of 200 species a bird is of."""

from ..build import ExplainedImages


class Cub(ExplainedImages):
    """CUB-200-2011 (Wah et al., 2011), with its masks, and with captions or its attributes as rationales."""

    PRETTY_NAME = "CUB-200-2011"
    SUMMARY = "Photographs of 200 species of birds, with masks of the bird and what tells of it."
    LAYOUT = "cub"
