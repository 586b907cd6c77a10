"""PyTorch EfficientNet-Lite model.

An example of a vision model that Transformers does not know, written as custom code of a model repository: two flat
files that import torch and transformers alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_efficientnet_lite import EfficientNetLiteConfig


def scaled_channels(channels: int, config: EfficientNetLiteConfig) -> int:
    """`channels` times the width, to the nearest multiple of `depth_divisor` that is not over 10 % too small."""
    divisor = config.depth_divisor
    wanted = channels * config.width_coefficient
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


class EfficientNetLiteConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: `ceil(size / stride)` outputs, the odd pixel below and right."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        pad_height, pad_width = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(hidden_states.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        padding = (pad_height // 2, pad_width // 2)
        # Only an odd padding needs a padded copy of the input.
        if pad_height % 2 or pad_width % 2:
            hidden_states = F.pad(
                hidden_states, (padding[1], pad_width - padding[1], padding[0], pad_height - padding[0])
            )
            padding = (0, 0)
        return F.conv2d(hidden_states, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class EfficientNetLiteConvLayer(nn.Module):
    """Convolution, batch normalisation and, unless `activation=False`, ReLU6."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ):
        super().__init__()
        self.convolution = EfficientNetLiteConv2d(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(
            out_channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )
        # Never in-place: a hook may hold this output as the feature map of a saliency map.
        self.activation = nn.ReLU6() if activation else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(hidden_states)))


class EfficientNetLiteBlock(nn.Module):
    """Mobile inverted bottleneck: widen (1x1), depthwise convolution, narrow (1x1), residual where shapes agree."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand_ratio: int,
        drop_rate: float,
    ):
        super().__init__()
        wide = in_channels * expand_ratio
        self.expansion = EfficientNetLiteConvLayer(config, in_channels, wide) if expand_ratio != 1 else nn.Identity()
        self.depthwise = EfficientNetLiteConvLayer(config, wide, wide, kernel_size, stride, groups=wide)
        self.projection = EfficientNetLiteConvLayer(config, wide, out_channels, activation=False)
        self.has_residual = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        update = self.projection(self.depthwise(self.expansion(hidden_states)))
        if not self.has_residual:
            return update
        if self.training and self.drop_rate > 0:
            # Stochastic depth (Huang et al. 2016), one draw an image.
            keep = torch.rand(update.shape[0], 1, 1, 1, device=update.device) >= self.drop_rate
            update = update * keep / (1 - self.drop_rate)
        return hidden_states + update


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    config: EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["EfficientNetLiteBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initial weights of the TensorFlow code. `transformers.initialization` leaves loaded weights alone."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # TensorFlow counts one filter a channel in a depthwise convolution.
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            init.uniform_(module.weight, -bound, bound)


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """
    EfficientNet-Lite with a linear classifier on the mean of its last feature map.

    Example:

    ```python
    >>> import torch

    >>> model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=4)).eval()
    >>> model(torch.zeros(2, 3, 224, 224)).logits.shape
    torch.Size([2, 4])
    ```"""

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.stem = EfficientNetLiteConvLayer(config, config.num_channels, config.stem_channels, 3, stride=2)
        self.stages = self._make_stages(config)
        self.features = EfficientNetLiteConvLayer(
            config, scaled_channels(config.out_channels[-1], config), config.hidden_dim
        )
        self.dropout = nn.Dropout(config.dropout_rate)
        self.classifier = nn.Linear(config.hidden_dim, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @staticmethod
    def _make_stages(config: EfficientNetLiteConfig) -> nn.ModuleList:
        """One `nn.Sequential` of blocks a row of the block table, scaled in width and depth."""
        repeats = [math.ceil(config.depth_coefficient * repeat) for repeat in config.num_block_repeats]
        # The Lite variants do not scale the first and the last stage in depth.
        repeats[0], repeats[-1] = config.num_block_repeats[0], config.num_block_repeats[-1]
        channels = [config.stem_channels, *(scaled_channels(count, config) for count in config.out_channels)]
        stages = nn.ModuleList()
        index = 0
        for stage, repeat in enumerate(repeats):
            blocks = []
            for position in range(repeat):
                blocks.append(
                    EfficientNetLiteBlock(
                        config,
                        in_channels=channels[stage] if position == 0 else channels[stage + 1],
                        out_channels=channels[stage + 1],
                        kernel_size=config.kernel_sizes[stage],
                        stride=config.strides[stage] if position == 0 else 1,
                        expand_ratio=config.expand_ratios[stage],
                        drop_rate=config.drop_connect_rate * index / sum(repeats),
                    )
                )
                index += 1
            stages.append(nn.Sequential(*blocks))
        return stages

    # No `**kwargs`: with them, Trainer would take the loss for one already divided by the accumulation steps.
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | ImageClassifierOutputWithNoAttention:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images, normalised to about [-1, 1]: the published weights expect `(value - 127) / 128` of 0..255.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class indices in `[0, num_labels - 1]`; the loss is then the cross-entropy.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem, of every stage and of `features`, in this order.
            return_dict (`bool`, *optional*):
                Whether to return a `ModelOutput` instead of a tuple.

        Returns:
            `logits` of shape `(batch_size, num_labels)`; the last of `hidden_states` has the shape `(batch_size,
            hidden_dim, ceil(height / 32), ceil(width / 32))` and values in [0, 6].
        """
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have the shape (batch_size, {self.config.num_channels}, height, width), "
                f"but got {tuple(pixel_values.shape)}."
            )
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        hidden_states = [self.stem(pixel_values)]
        for stage in self.stages:
            hidden_states.append(stage(hidden_states[-1]))
        hidden_states.append(self.features(hidden_states[-1]))  # (B, hidden_dim, H/32, W/32)

        pooled = hidden_states[-1].mean(dim=(2, 3))  # (B, hidden_dim)
        logits = self.classifier(self.dropout(pooled))
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None

        all_hidden_states = tuple(hidden_states) if output_hidden_states else None
        if not return_dict:
            return tuple(value for value in (loss, logits, all_hidden_states) if value is not None)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=all_hidden_states)


EfficientNetLiteForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["EfficientNetLiteForImageClassification", "EfficientNetLitePreTrainedModel"]
