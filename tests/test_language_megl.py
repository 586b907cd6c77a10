"""Language models of every kind: where the evidence stands, and which can be used."""

import pytest
import torch
from conftest import LABELS
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_megl import MeglForImageClassification
from modeling_megl.language_megl import max_positions, place_evidence, probe_language_model
from modeling_megl.training_megl import add_lora


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 96}
WINDOW = {**LLAMA, "sliding_window": 12, "head_dim": 4}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
STATES = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}

# model_type, with what tells it from another of the same type: its settings.
WORKING = {
    # absolute positions
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": 6},
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    "opt of narrow embeddings": {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 24, "num_hidden_layers": 2,
                                 "num_attention_heads": 4},
    "biogpt": SIZES,
    "xglm": {"d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 24},
    "bert with a causal mask": {**SIZES, "is_decoder": True},
    "electra with a causal mask": {**SIZES, "is_decoder": True, "embedding_size": 8},
    # rotary positions
    **dict.fromkeys(("llama", "qwen2", "phi", "phi3", "stablelm", "olmo", "smollm3", "granite", "cohere"), LLAMA),
    **dict.fromkeys(("qwen3", "gemma"), {**LLAMA, "head_dim": 4}),
    "gptj": {**GPT2, "rotary_dim": 2},
    "codegen": {**GPT2, "rotary_dim": 2},
    "gpt_neox": SIZES,
    "persimmon": SIZES,
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    # sliding windows
    **dict.fromkeys(("mistral", "starcoder2", "gemma2", "gemma3_text"), WINDOW),
    # ALiBi
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    "falcon with alibi": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    # states
    "mamba": STATES,
    "mamba2": {**STATES, "num_heads": 8, "head_dim": 4, "n_groups": 2, "chunk_size": 8},
    "jamba": {**LLAMA, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
              "mamba_dt_rank": 4, "use_mamba_kernels": False},
}  # fmt: skip

TOKENS_ALONE = (
    r"cannot generate from embeddings, which the evidence is given as \(TypeError: its class takes tokens alone"
)
NOT_CAUSAL = "sees what follows a token, so that it is no causal one"
PADDING = "its answer depends on the padding in front of a prompt"
ANOTHER_ANSWER = "it generates otherwise than it was trained, from the same evidence and prompt"
REFUSED = {
    "openai-gpt": (GPT2, TOKENS_ALONE),
    "ctrl": ({**GPT2, "dff": 24}, TOKENS_ALONE),
    "xlnet": ({"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}, TOKENS_ALONE),
    "xlm": ({"emb_dim": 16, "n_layers": 2, "n_heads": 4}, TOKENS_ALONE),
    "bert": (SIZES, NOT_CAUSAL),
    "roberta": (SIZES, NOT_CAUSAL),
    "roberta with a causal mask": ({**SIZES, "is_decoder": True}, ANOTHER_ANSWER),
    "bart": (BART, PADDING),
    "rwkv": ({"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}, ANOTHER_ANSWER),
    "recurrent_gemma": ({**LLAMA, "num_hidden_layers": 3, "attention_window_size": 8}, PADDING),
}


def blow_up(language_model):
    """Weights so large that the answers differ visibly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in language_model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture()
def make(make_model):
    def make(name, settings):
        model = make_model("megl-resnet-tiny", text={"model_type": name.split()[0], **settings})
        blow_up(model.language_model)
        return model

    return make


@pytest.fixture(scope="module")
def batch(processor):
    texts = ["it has whiskers", "a large white animal", "two round eyes look out"]
    return {
        "pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 2]),
        **processor(label_names=LABELS, rationales=texts),
    }


@pytest.mark.parametrize("name", WORKING)
def test_training_step_and_the_same_rationales_in_a_batch_as_alone(name, make, processor, batch):
    model = make(name, WORKING[name])
    model.probe_language_model()
    model(**batch).loss_text.backward()
    for parameter in model.grounding.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any()

    prompts = processor.prompts(LABELS)
    assert len(set(prompts["attention_mask"].sum(dim=1).tolist())) > 1, "prompts of several lengths"
    with torch.no_grad():
        evidence = 3 * model(batch["pixel_values"]).evidence_tokens
    assert evidence.shape[-1] == model.get_input_embeddings().weight.shape[1]

    def generate(rows, ids, mask):
        tokens = model.generate_rationales(ids, mask, evidence_tokens=evidence[rows], max_new_tokens=8)
        embeds, mask = place_evidence(evidence[rows], model.get_input_embeddings()(ids), mask)
        scores = model.language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=0,
        ).logits[0]  # fmt: skip
        return tokens, scores

    tokens, scores = generate([0, 1, 2], **{"ids": prompts["input_ids"], "mask": prompts["attention_mask"]})
    for row in range(3):
        ids = prompts["input_ids"][row : row + 1, prompts["attention_mask"][row].bool()]
        alone, alone_scores = generate([row], ids, torch.ones_like(ids))
        assert torch.equal(tokens[row, : alone.shape[1]], alone[0])
        torch.testing.assert_close(scores[row], alone_scores[0], rtol=1e-4, atol=1e-4)
        # And as in training, where the padding is on the right.
        position = ids.shape[1]
        with torch.no_grad():
            trained = model._score_rationales(evidence, batch["input_ids"], batch["attention_mask"])[row, position]
        torch.testing.assert_close(trained, alone_scores[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_language_models_that_cannot_be_used_are_refused_with_the_reason(name, make):
    settings, reason = REFUSED[name]
    model = make(name, settings)
    with pytest.raises(ValueError, match=reason):
        model.probe_language_model()


def test_trying_a_language_model_leaves_no_trace(make):
    model = make("gpt2", GPT2).train()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    model.probe_language_model()
    assert torch.equal(torch.get_rng_state(), state) and model.language_model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_that_are_not_finite_are_refused():
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2, vocab_size=32))
    with torch.no_grad():
        language_model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"cannot be trained on embeddings, .* \(ValueError: the gradient is not finite"
    ):
        probe_language_model(language_model, 2)


def test_evidence_that_the_text_does_not_see_is_refused(make):
    model = make("mistral", {**WINDOW, "num_hidden_layers": 1, "sliding_window": 3})
    with pytest.raises(ValueError, match="the evidence does not reach what is written"):
        model.probe_language_model()


def test_evidence_is_placed_before_the_first_token_that_is_no_padding():
    evidence = -torch.arange(1, 5.0).view(2, 2, 1)
    text = torch.tensor([[0.0, 0, 5], [6, 7, 0]])[:, :, None]
    embeds, mask = place_evidence(evidence, text, torch.tensor([[0, 0, 1], [1, 1, 0]]))
    assert embeds[:, :, 0].tolist() == [[0, 0, -1, -2, 5], [-3, -4, 6, 7, 0]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "bloom", "mamba2", "mpt", "opt of narrow embeddings"])
def test_lora_trains_the_language_models_linear_layers_whatever_their_class(name, make, batch):
    model = add_lora(make(name, WORKING[name]), rank=2).train()
    model(**batch).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert len(adapters) >= 4
    for key, parameter in adapters.items():
        assert "language_model." in key and parameter.grad.any(), key
    assert not any("lm_head" in key for key in adapters)


def test_lora_leaves_routers_alone(make, batch):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    model = add_lora(make("phimoe", {**LLAMA, **experts}), rank=2).train()
    adapted = {name.split(".lora_B")[0].rsplit(".")[-1] for name, _ in model.named_parameters() if "lora_B" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model(**batch).loss.backward()


def test_lora_of_no_rank_and_without_layers_is_refused(make):
    for rank in (0, -2):
        with pytest.raises(ValueError, match=f"`lora_rank` must be 1 or more, got {rank}"):
            add_lora(make("gpt2", GPT2), rank)
    model = make("gpt2", GPT2)
    model.language_model.transformer.h = torch.nn.ModuleList()
    message = "`lora_rank` needs a language model with linear layers, GPT2LMHeadModel has none"
    with pytest.raises(ValueError, match=message):
        add_lora(model, 2)


def test_language_model_whose_config_has_no_padding_token(make, processor):
    model = make("codegen", WORKING["codegen"])
    text_config = model.config.text_config
    del text_config.pad_token_id
    assert not hasattr(text_config, "pad_token_id")
    text_config.eos_token_id = None
    inputs = {**processor.prompts(["cat"]), "evidence_tokens": torch.zeros(1, 3, 16), "max_new_tokens": 5}
    assert model.generate_rationales(**inputs).shape == (1, 5)
    model.match_processor(processor)
    assert text_config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("name", "settings", "limit"),
    [("gpt2", GPT2, 96), ("llama", LLAMA, 96), ("mpt", WORKING["mpt"], 96), ("mamba", STATES, None)],
)
def test_positions_that_a_language_model_has(name, settings, limit):
    assert max_positions(AutoConfig.for_model(name, **settings)) == limit


@pytest.mark.parametrize("size", [0.02, 0.3])
def test_evidence_begins_as_large_as_the_words_of_a_pretrained_model(tmp_path, size):
    torch.manual_seed(0)
    sizes = {**LLAMA, "hidden_size": 256, "vocab_size": 64, "initializer_range": size}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(tmp_path)
    vision = {"model_type": "resnet", "embedding_size": 64, "hidden_sizes": [64, 64], "depths": [1, 1]}
    vision |= {"image_size": 32, "layer_type": "basic"}
    model = MeglForImageClassification.from_vision_text_pretrained(
        vision, str(tmp_path), ["a", "b"], evidence_layers=["auto"]
    )
    # Whatever a picture's features are, the norms make them so; one cell has all of the map.
    saliency = torch.zeros(16, 4, 4)
    saliency[:, 1, 2] = 1
    tokens = model.grounding(torch.randn(16, sum(model.grounding.channels), 4, 4), saliency)
    assert len(model.config.evidence_layers) == 1
    found = (tokens.square().mean(dim=(0, 2)).sqrt() / size).tolist()
    # Beside the bias of 0.02; the position's sines and cosines have a root mean square of 0.7.
    bias = (0.02 / size) ** 2
    expected = [(1 + bias) ** 0.5] * (tokens.shape[1] - 1) + [(0.5 + bias) ** 0.5]
    assert found == pytest.approx(expected, rel=0.15)


def test_a_map_of_zeros_has_a_finite_gradient_in_a_deep_pretrained_model(tmp_path):
    torch.manual_seed(0)
    sizes = {**LLAMA, "num_hidden_layers": 30, "vocab_size": 32, "initializer_range": 0.1}
    text = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    text.save_pretrained(tmp_path)
    vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "image_size": 32}
    model = MeglForImageClassification.from_vision_text_pretrained(vision, str(tmp_path), ["a", "b"])

    def gradients():
        ids = torch.tensor([[4, 5, 6, 7]])
        evidence = {"features": torch.rand(1, 8, 4, 4), "saliency": torch.zeros(1, 4, 4)}
        model.zero_grad()
        model(**evidence, input_ids=ids, rationale_labels=ids).loss_text.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.language_model.parameters()])

    assert gradients().isfinite().all()
    model.grounding.leave_zero(0.0)
    assert not gradients().isfinite().all()
