"""The language model: how it is loaded, where the evidence stands in its input, and whether it can be used at all."""

import hashlib
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .configuration_megl import one_line, read_config


def load_language_model(text, **where):
    """
    A causal language model by Hub id, folder or GGUF file, or with random weights by its configuration; a `ValueError`
    where it is none, or one with code of its own. `where` says where to look on the Hub, as in `from_pretrained`.
    """
    if not isinstance(text, str):
        config = AutoConfig.for_model(**text) if isinstance(text, dict) else text
        check_causal(config, f"A {config.model_type!r} model")
        return AutoModelForCausalLM.from_config(config)
    folder, gguf_kwargs = split_gguf(text)
    check_language_model(text, **where)
    language_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, **gguf_kwargs, **where
    )
    # The weights are read by now: what is saved from here on is an ordinary checkpoint.
    if hasattr(language_model.config, "quantization_config"):
        del language_model.config.quantization_config
    return language_model


def split_gguf(text):
    """`(folder, {"gguf_file": name})` of the path of a GGUF file, and `(text, {})` of anything else."""
    path = Path(text)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (text, {})


def checksum(state):
    """SHA-256 of a state dict, of its names and, in single precision, its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


# Where a checkpoint has adapters in place of its language model: what PEFT takes as adapters of that.
ADAPTER_FOLDER = "language_model"


def load_adapted(name, config, where, expected):
    """
    The weights of a whole model, of a checkpoint that `save_adapter` wrote and the language model that it goes with.

    Args:
        name (`str`): Hub id or folder of the checkpoint.
        config ([`MeglConfig`]): Its configuration; `text_base_model` names the language model.
        where (`dict`): What `from_pretrained` was told of places and versions.
        expected (`dict`): The weights that the model has, by their names.

    Raises:
        `ImportError`: without PEFT. `OSError`: where a part is not to be had. `ValueError`: where the language model
            is another one than the adapters were trained for, and where weights are missing.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(f"{name} holds adapters, which need the package peft: pip install peft") from error
    where = {**where, "subfolder": where.get("subfolder") or ""}
    adapters = {**where, "subfolder": "/".join(filter(None, (where["subfolder"], ADAPTER_FOLDER)))}
    state = load_file(cached_file(name, SAFE_WEIGHTS_NAME, **where))
    # PEFT would take a pickle where there is none.
    given = load_file(cached_file(name, "adapter_model.safetensors", **adapters))
    _check_known(config, f"the adapters of {name} are of no use")
    own = ("revision", "subfolder")  # of this repository
    language_model = load_language_model(
        config.text_base_model, **{key: value for key, value in where.items() if key not in own}
    )
    check_base(config, language_model.state_dict(), f"the adapters of {name} do not fit")
    adapted = PeftModel.from_pretrained(language_model, name, **adapters)
    _check_whole(name, get_peft_model_state_dict(adapted), given)
    merged = adapted.merge_and_unload().state_dict()
    state |= {f"language_model.{key}": value for key, value in merged.items()}
    _check_whole(name, expected, state)
    return state


def _check_whole(name, expected, given):
    if missing := sorted(expected.keys() - given.keys()):
        raise ValueError(f"{name} is not whole: it has no weights for {', '.join(missing[:3])}.")


def _check_known(config, consequence):
    if config.text_base_model is None:
        raise ValueError(
            "Where the language model came from is not known, as it was trained from scratch or by an older version: "
            f"{consequence}."
        )


def check_base(config, state, consequence):
    """Raise a `ValueError` where `state` are not the weights that the language model was loaded with."""
    _check_known(config, consequence)
    if checksum(state) != config.text_base_checksum:
        raise ValueError(
            f"The language model is not {config.text_base_model} as it was when the model was made: {consequence}."
        )


def place_evidence(evidence_tokens, embeddings, attention_mask):
    """
    Evidence, then text, without a gap: padding on the left of a text is moved in front of its evidence. Not every
    language model takes no notice of padding that has something before it.

    Args:
        evidence_tokens (`torch.Tensor` of shape `(batch_size, num_evidence_tokens, hidden_size)`): The evidence.
        embeddings (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): The text.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`): 0 where the text is padding.

    Returns:
        `inputs_embeds` `(batch_size, num_evidence_tokens + length, hidden_size)` and its `attention_mask`. What is at
        `length` `t` of the text comes to `num_evidence_tokens + t`, unless it is padding on the left.
    """
    evidence_tokens = evidence_tokens.to(embeddings.dtype)
    inputs_embeds = torch.cat([evidence_tokens, embeddings], dim=1)
    seen = attention_mask.new_ones(evidence_tokens.shape[:2])
    mask = torch.cat([seen, attention_mask], dim=1)
    on_the_left = torch.cat([torch.zeros_like(seen), attention_mask.cumsum(dim=1) == 0], dim=1)
    order = on_the_left.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return inputs_embeds.gather(1, order[:, :, None].expand_as(inputs_embeds)), mask.gather(1, order)


def max_positions(text_config):
    """The most tokens, evidence included, that a language model is made for; `None` where nothing limits them."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions"):
        value = getattr(text_config.get_text_config(), name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def check_language_model(text, **where):
    """
    Look at a checkpoint's config before anything is loaded.

    Args:
        text (`str`): Hub id or folder of a language model, or a GGUF file, of which nothing is looked at.
        where: Where to look on the Hub, as in `from_pretrained`.

    Raises:
        `ValueError`: where it is no causal language model, and where it has code of its own. `OSError`: where there is
        none of that name.
    """
    if text.endswith(".gguf"):
        return
    config_dict = read_config(text, **where)
    if config_dict.get("model_type") not in CONFIG_MAPPING and "auto_map" in config_dict:
        raise ValueError(
            f"{text} is a model with code of its own, which a MEGL checkpoint does not carry: choose a language model "
            "that Transformers has."
        )
    check_causal(AutoConfig.from_pretrained(text, trust_remote_code=False, **where), text)


def check_causal(config, name):
    """Raise a `ValueError` where there is no causal language model of this configuration."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name} is no causal language model: its `model_type` is {config.model_type!r}.")


@torch.random.fork_rng(devices=[])
def probe_language_model(language_model, num_evidence_tokens):
    """
    Try a language model on random evidence: a training step, and rationales of two prompts of different lengths.

    Args:
        language_model (`PreTrainedModel`): A causal language model.
        num_evidence_tokens (`int`): Number of tokens in front of the prompt.

    Raises:
        `ValueError`: where it cannot be used, with the reason.
    """
    name = type(language_model).__name__
    embed = language_model.get_input_embeddings()
    vocab_size, width = embed.weight.shape
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocab_size, (n,), generator=generator).to(embed.weight.device) for n in (5, 2)]
    evidence = torch.randn(2, num_evidence_tokens, width, generator=generator).to(embed.weight)
    evidence *= embed.weight.detach().std()

    def score(tokens, row):
        """The scores of what follows the evidence of a row and some tokens, at each position."""
        embeds = torch.cat([evidence[row], embed(tokens)])[None]
        return language_model(inputs_embeds=embeds, attention_mask=_ones(embeds), use_cache=False).logits[0]

    with _refused(f"{name} cannot be trained on embeddings, which the evidence is given as"):
        _train(language_model, evidence, embed(prompts[0])[None])
    with torch.no_grad(), _in_mode(language_model, training=False):
        with _refused(f"{name} cannot generate from embeddings, which the evidence is given as"):
            tokens, scores = _generate(language_model, evidence, prompts, embed)
        for row, prompt in enumerate(prompts):
            expected = score(torch.cat([prompt, tokens[row, :-1]]), row)
            if not _close(score(prompt, row), expected[: -tokens.shape[1] + 1]):
                raise ValueError(
                    f"{name} cannot be used as a language model: it sees what follows a token, so that it is no "
                    "causal one. An encoder such as BERT is one with `is_decoder: true` in its config."
                )
            if not _close(scores[row], expected[-tokens.shape[1] :]):
                # Only the second prompt, the shorter one, is padded.
                reason = (
                    "its answer depends on the padding in front of a prompt"
                    if row
                    else "it generates otherwise than it was trained, from the same evidence and prompt"
                )
                raise ValueError(f"{name} cannot be used as a language model: {reason}. Choose another one.")


def _train(language_model, evidence, embeddings):
    """A forward and a backward pass as in training, from the text to the evidence, which must be reached."""
    evidence = evidence[:1].clone().requires_grad_()
    embeds = torch.cat([evidence, embeddings.detach()], dim=1)
    with _in_mode(language_model, training=True):
        logits = language_model(inputs_embeds=embeds, attention_mask=_ones(embeds), use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[0, -1].float().logsumexp(dim=-1), evidence)
    if not gradient.isfinite().all():
        raise ValueError("the gradient is not finite")
    if not gradient.any():
        raise ValueError("the evidence does not reach what is written")


def _generate(language_model, evidence, prompts, embed):
    """Tokens `(rows, 3)` that a batch of prompts is continued by, and the scores `(rows, 3, vocab_size)` of each."""
    ids, mask = (
        pad_sequence(rows, batch_first=True, padding_side="left")
        for rows in (prompts, [torch.ones_like(prompt) for prompt in prompts])
    )
    if "inputs_embeds" not in signature(language_model.prepare_inputs_for_generation).parameters:
        raise TypeError("its class takes tokens alone")
    inputs_embeds, mask = place_evidence(evidence, embed(ids), mask)
    output = language_model.generate(
        inputs_embeds=inputs_embeds,
        attention_mask=mask,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences, torch.stack(output.logits, dim=1)


def _ones(embeds):
    return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)


def _close(found, expected):
    """Whether scores are the same but for rounding."""
    tolerance = 3 * torch.finfo(expected.dtype).eps ** 0.5
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


@contextmanager
def _in_mode(model, training):
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def _refused(reason):
    """What goes wrong in the block as one `ValueError`: models fail in many ways on what they were not made for."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{reason} ({type(error).__name__}: {one_line(error)}). Choose another one.") from error
