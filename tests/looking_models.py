"""A classifier with code of its own that looks at the middle of a picture or at its rim, by its weights."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class LookingConfig(PreTrainedConfig):
    model_type = "looking"
    saliency_layer: str = "features"


class LookingForImageClassification(PreTrainedModel):
    """Names a picture of 32 x 32 pixels by the brightest channel of what it looks at; the map has 8 x 8 cells."""

    config_class = LookingConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.features = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.weights = nn.Parameter(torch.zeros(8, 8))
        self.post_init()

    def look_at(self, where):
        """Let it look at the `"middle"`, where objects are, or at the `"rim"`."""
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.weights[:] = float(where == "rim")
            self.weights[1:7, 1:7] = 0
            if where == "middle":
                self.weights[3:5, 3:5] = 1
        return self

    def forward(self, pixel_values):
        looked_at = self.features(pixel_values) * self.weights
        return ImageClassifierOutput(logits=10 * looked_at.sum(dim=(2, 3)) / self.weights.sum())


LookingConfig.register_for_auto_class()
LookingForImageClassification.register_for_auto_class("AutoModelForImageClassification")
