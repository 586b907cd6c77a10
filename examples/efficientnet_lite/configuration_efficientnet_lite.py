"""EfficientNet-Lite model configuration."""

from transformers import PreTrainedConfig


# (width_coefficient, depth_coefficient, image_size, dropout_rate) of the five published sizes, from
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py
VARIANTS = {
    "lite0": (1.0, 1.0, 224, 0.2),
    "lite1": (1.0, 1.1, 240, 0.2),
    "lite2": (1.1, 1.2, 260, 0.3),
    "lite3": (1.2, 1.4, 280, 0.3),
    "lite4": (1.4, 1.8, 300, 0.3),
}


class EfficientNetLiteConfig(PreTrainedConfig):
    r"""
    Configuration of an EfficientNet-Lite image classifier. The defaults give EfficientNet-Lite0.

    The network is EfficientNet-B0 (Tan & Le 2019, https://arxiv.org/abs/1905.11946, Table 1) with three changes made
    for mobile accelerators: no squeeze-and-excitation, ReLU6 in place of swish, and a stem and a head that do not grow
    with the width (https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html).

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of `pixel_values`.
        image_size (`int`, *optional*, defaults to 224):
            Side in pixels that the weights were trained at. Other sizes run as well: the padding follows the input.
        width_coefficient (`float`, *optional*, defaults to 1.0):
            Factor on the channels of the stages, rounded to multiples of `depth_divisor`.
        depth_coefficient (`float`, *optional*, defaults to 1.0):
            Factor on the number of blocks of the stages, rounded up; the first and the last stage are not scaled.
        depth_divisor (`int`, *optional*, defaults to 8):
            Unit of the channel counts.
        kernel_sizes, strides, expand_ratios, out_channels, num_block_repeats (`list[int]`, *optional*):
            The block table before scaling, one entry a stage. The stride is that of a stage's first block.
        stem_channels (`int`, *optional*, defaults to 32):
            Channels of the first convolution, not scaled.
        hidden_dim (`int`, *optional*, defaults to 1280):
            Channels of the last feature map, not scaled.
        dropout_rate (`float`, *optional*, defaults to 0.2):
            Dropout before the classifier.
        drop_connect_rate (`float`, *optional*, defaults to 0.2):
            Probability that the last residual block drops an image's update in training; earlier blocks drop
            proportionally fewer.
        batch_norm_eps (`float`, *optional*, defaults to 1e-3):
            Added to the variance.
        batch_norm_momentum (`float`, *optional*, defaults to 0.01):
            Weight of the new batch in the running statistics, which is torch's meaning; TensorFlow's 0.99 is its
            complement.
        saliency_layer (`str`, *optional*, defaults to `"features"`):
            Name of the sub-module whose output is the last feature map, after its activation. What follows is a mean
            over the grid and a linear layer, so this is where a saliency map is read.

    Example:

    ```python
    >>> config = EfficientNetLiteConfig.from_variant("lite2", num_labels=7)
    >>> config.width_coefficient, config.depth_coefficient, config.image_size
    (1.1, 1.2, 260)
    ```"""

    model_type = "efficientnet_lite"
    attribute_map = {"hidden_size": "hidden_dim"}

    num_channels: int = 3
    image_size: int = 224
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    depth_divisor: int = 8
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    out_channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    num_block_repeats: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    stem_channels: int = 32
    hidden_dim: int = 1280
    dropout_rate: float = 0.2
    drop_connect_rate: float = 0.2
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    saliency_layer: str = "features"

    def __post_init__(self, **kwargs):
        table = ("kernel_sizes", "strides", "expand_ratios", "out_channels", "num_block_repeats")
        lengths = {name: len(getattr(self, name)) for name in table}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                f"The block table needs at least one stage and one entry a stage in each list, but got the lengths "
                f"{lengths}. Give the lists the same length."
            )
        for name in ("dropout_rate", "drop_connect_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, but got {getattr(self, name)}.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **kwargs) -> "EfficientNetLiteConfig":
        """The configuration of `"lite0"` to `"lite4"`; `kwargs` set or override single fields."""
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {sorted(VARIANTS)}, but got {variant!r}.")
        names = ("width_coefficient", "depth_coefficient", "image_size", "dropout_rate")
        return cls(**{**dict(zip(names, VARIANTS[variant], strict=True)), **kwargs})


EfficientNetLiteConfig.register_for_auto_class()

__all__ = ["EfficientNetLiteConfig"]
