"""What training and evaluating a LLaVA take."""

from dataclasses import dataclass

from megl.arguments import check_lowest, option, required


@dataclass(kw_only=True)
class LlavaTrainArguments:
    """What to train on what."""

    dataset_name: str = required("Hub id or folder of a data set (`megl prepare` makes one).")
    vision: str = option("Vision tower: known sizes, or a CLIP model.", "clip-tiny")
    text: str = option("Language model, as in `megl init`.", "llama-tiny")
    train_split: str = option("Split to train on.", "train")


@dataclass(kw_only=True)
class LlavaEvaluateArguments:
    """What to evaluate on what."""

    model: str = required("Folder that `studies/llava/train.py` wrote.")
    dataset: str = required("Hub id or folder of a data set.")
    split: str = option("Split to evaluate on.", "test")
    output: str = required("Folder to write; it must be new or empty.", metavar="FOLDER")
    batch_size: int = option("Pictures at a time.", 32)
    max_new_tokens: int = option("Greatest length of rationale and label.", 96)
    resamples: int = option("Resamples of the bootstrap.", 2000)
    seed: int = option("Draws the resamples.", 0)

    def __post_init__(self):
        check_lowest(self, batch_size=1, max_new_tokens=1, resamples=1, seed=0)
