"""Waterbirds: whether a bird is a landbird or a waterbird, on backgrounds that mislead."""

from ..build import ExplainedImages


class Waterbirds(ExplainedImages):
    """Waterbirds (Sagawa et al., 2020, arXiv:1911.08731), with CUB-200-2011's masks."""

    PRETTY_NAME = "Waterbirds"
    SUMMARY = "Birds of CUB-200-2011 cut out and put on land or water, labelled as landbirds or waterbirds."
    LAYOUT = "waterbirds"
