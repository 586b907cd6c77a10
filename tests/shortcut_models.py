"""Models of which it is known what they go by: some were trained where the background's colour gives the label."""

import numpy as np
from conftest import LABELS
from datasets import Dataset
from PIL import Image

from dataset_builders.build import features
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


COLOURS = np.array([[150, 90, 90], [90, 150, 90], [90, 90, 150]])


def draw_pictures(count, shortcut, seed):
    """
    Pictures `(32, 32)` of an object, a patch of stripes that lie, stand or cross according to the class, on a noisy
    background whose colour is that of the class, or any.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % 3
        picture = COLOURS[label if shortcut else rng.integers(3)] + rng.normal(0, 25, (32, 32, 3))
        top, left, side = *rng.integers(1, 17, 2), rng.integers(12, 15)
        up, across = np.indices((side, side)) // 2 % 2
        inside = slice(top, top + side), slice(left, left + side)
        picture[inside] = (60 + 140 * (up, across, up ^ across)[label])[..., None] + rng.normal(0, 25, (side, side, 3))
        mask = np.zeros((32, 32), np.uint8)
        mask[inside] = 255
        images = {"image": picture.clip(0, 255).astype(np.uint8), "visual_explanation": mask}
        images = {name: Image.fromarray(values) for name, values in images.items()}
        rows.append({"id": str(number), "label": label, "textual_explanations": [], "group": None, **images})
    return Dataset.from_list(rows, features=features(LABELS))


def save_trained(make_model, processor, folder, shortcut, visual_loss_weight=0.0, seed=0):
    """A ViT trained on labels, and on masks where they have a weight; it is not taught to write."""
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    settings |= {"text_loss_weight": 0.0, "distribution_loss_weight": 0.0, "visual_loss_weight": visual_loss_weight}
    arguments = MeglTrainingArguments(
        str(folder), per_device_train_batch_size=32, max_steps=150, learning_rate=5e-3, seed=seed, **settings
    )
    trainer = MeglTrainer(
        make_model("megl-vit-tiny", seed),
        arguments,
        train_dataset=list(draw_pictures(200, shortcut, 1000 + seed)),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    (folder / "training_settings.json").write_text('{"text_loss_weight": 0}')
