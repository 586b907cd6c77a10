"""Oxford-IIIT Pet: which of 37 breeds a cat or a dog is of."""

from ..build import ExplainedImages


class Pets(ExplainedImages):
    """Oxford-IIIT Pet (Parkhi et al., 2012), with masks from its trimaps."""

    PRETTY_NAME = "Oxford-IIIT Pet"
    SUMMARY = "Photographs of cats and dogs of 37 breeds, with masks of the animal."
    LAYOUT = "pets"
