"""What an explained answer costs, against a LLaVA that writes the rationale first and the label after it.

```
python -m studies.llava.efficiency --output docs/efficiency.md
python -m studies.llava.efficiency --sizes llama-7b --device cuda --dtype bfloat16 --output efficiency.md
```

Writes a page and, beside it, its figures as JSON. Costs are those of random weights and random pictures, which cost
the same as real ones, with the same number of rationale tokens forced upon both models. What trained models reach is
the study `studies/efficiency.yaml`.
"""

import argparse
import json
import statistics
import sys
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration

from dataset_builders.files import write_file
from megl.machine import Page, compare, machine, peak_memory, table
from modeling_megl import PRESETS, TEXT_PRESETS, MeglConfig, MeglForImageClassification
from studies.llava.model import VISION_PRESETS, make_config


RATIONALE_TOKENS = 20
LABEL_TOKENS = 3  # "Answer", ":" and a name
PROMPT_TOKENS = 8
NUM_LABELS = 100

# The published shapes of https://huggingface.co/HuggingFaceTB/SmolLM2-135M and of LLaVA-1.5-7B's language model.
SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LLAMA_7B = {"model_type": "llama", "vocab_size": 32064}  # otherwise Transformers' default configuration
# MEGL's preset, LLaVA's vision tower, and the language model of both; in `sample-vit` both towers have one shape.
SIZES = {
    "sample": ("megl-resnet-tiny", "clip-tiny", {**TEXT_PRESETS["llama-tiny"], "vocab_size": 512}),
    "sample-vit": ("megl-vit-tiny", "clip-tiny", {**TEXT_PRESETS["llama-tiny"], "vocab_size": 512}),
    "llama-small": ("megl-vit-b16", "clip-vit-l14-336", {**TEXT_PRESETS["llama-small"], "vocab_size": 2048}),
    "smollm2-135m": ("megl-vit-b16", "clip-vit-l14-336", SMOLLM2_135M),
    "llama-7b": ("megl-vit-b16", "clip-vit-l14-336", LLAMA_7B),
}
# What is compared, the step of MEGL and that of the LLaVA, and the ratio of times aimed at; without one, the
# operations are counted and nothing is timed.
RATIOS = {
    "label": ("megl_label", "llava_answer", 0.1),
    "label, map and rationale": ("megl_answer", "llava_answer", 0.3),
    "label, the LLaVA without its rationale": ("megl_label", "llava_label", None),
}
MODEL_HEADER = ["size", "visual tokens, MEGL", "LLaVA", "parameters, ratio", "MEGL, million", "LLaVA, million"]
STEPS = ("megl_label", "megl_answer", "llava_label", "llava_answer")
TIMED_STEPS = ("megl_label", "megl_answer", "llava_answer")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES)[:-1], help="models to time")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds of each comparison, after one warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all weights")
    parser.add_argument("--output", required=True, help="Markdown file to write, beside a JSON file of that name")
    parser.add_argument("--overwrite", action="store_true", help="replace them")
    parser.set_defaults(compile=False)
    return parser.parse_args()


# ---- What is measured ----


class Contest:
    """Both models, each made when it is first asked for, and the answers to compare."""

    memory_steps = 1
    attention = None  # as each model has it by default

    def __init__(self, name, arguments, batch_size=1):
        self.preset, self.tower, self.text_config = SIZES[name]
        self.device, self.dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
        self.batch_size = batch_size

    @cached_property
    def megl(self):
        preset = {**PRESETS[self.preset], "text_config": self.text_config}
        names = {i: str(i) for i in range(NUM_LABELS)}
        config = MeglConfig(**preset, id2label=names, label2id={name: i for i, name in names.items()})
        return self._make(MeglForImageClassification, config)

    @cached_property
    def llava(self):
        image_token_id = self.text_config["vocab_size"] - 1
        config = make_config(VISION_PRESETS[self.tower], self.text_config, image_token_id)
        return self._make(LlavaForConditionalGeneration, config)

    def _make(self, model_class, config):
        torch.manual_seed(0)
        with self.device:
            return model_class._from_config(config, dtype=self.dtype, attn_implementation=self.attention).eval()

    def _pixel_values(self, vision_config):
        size = vision_config.image_size
        return torch.randn(self.batch_size, 3, size, size, device=self.device, dtype=self.dtype)

    @property
    def _prompt(self):
        return torch.arange(10, 10 + PROMPT_TOKENS, device=self.device).expand(self.batch_size, -1)

    def nothing(self):
        """What the libraries take alone."""

    @torch.no_grad()
    def megl_label(self):
        self.megl(self._pixel_values(self.megl.config.vision_config), output_saliency=False)

    @torch.no_grad()
    def megl_answer(self):
        """Label, map and rationale."""
        evidence = self.megl(self._pixel_values(self.megl.config.vision_config)).evidence_tokens
        self._write_rationale(evidence)

    def llava_label(self):
        self._write_answer(LABEL_TOKENS)

    def llava_answer(self):
        """Rationale and label."""
        self._write_answer(RATIONALE_TOKENS + LABEL_TOKENS)

    def _write_rationale(self, evidence_tokens):
        count = {"min_new_tokens": RATIONALE_TOKENS, "max_new_tokens": RATIONALE_TOKENS}
        return self.megl.generate_rationales(self._prompt, evidence_tokens=evidence_tokens, **count)

    @torch.no_grad()
    def _write_answer(self, new_tokens):
        config = self.llava.config
        patches = self._prompt.new_full((self.batch_size, config.image_seq_length), config.image_token_id)
        return self.llava.generate(
            input_ids=torch.cat([patches, self._prompt], dim=1),
            pixel_values=self._pixel_values(config.vision_config),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )


class Counted(Contest):
    """
    The same passes without values, on the meta device, so that no size is too large to be counted. Attention is
    written out, as the counter does not know all of its fused kernels.
    """

    attention = "eager"

    def _write_rationale(self, evidence_tokens):
        prompt = self.megl.get_input_embeddings()(self._prompt)
        decode(self.megl.language_model, torch.cat([evidence_tokens, prompt], dim=1), RATIONALE_TOKENS)

    @torch.no_grad()
    def _write_answer(self, new_tokens):
        pixel_values = self._pixel_values(self.llava.config.vision_config)
        patches = torch.stack(self.llava.get_image_features(pixel_values).pooler_output)
        prompt = self.llava.get_input_embeddings()(self._prompt)
        decode(self.llava, torch.cat([patches, prompt], dim=1), new_tokens)


def decode(model, inputs_embeds, new_tokens):
    """The passes of greedy generation with a cache: one over the prompt, then one for each further token."""
    past_key_values = None
    for _ in range(new_tokens):
        output = model(inputs_embeds=inputs_embeds, past_key_values=past_key_values, use_cache=True, logits_to_keep=1)
        inputs_embeds, past_key_values = inputs_embeds[:, -1:], output.past_key_values


def count_flops(function):
    """Floating point operations of a call, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        # Only the total is asked for; the hooks that share it out by module fail where a map takes a gradient.
        counter.mod_tracker.__exit__()
        function()
    return counter.get_total_flops()


def count(name):
    """Parameters, tokens of the picture that the language model reads, and operations for one picture."""
    contest = Counted(name, argparse.Namespace(device="meta", dtype="float32"))
    return {
        "parameters": {model: getattr(contest, model).num_parameters() for model in ("megl", "llava")},
        "visual_tokens": {
            "megl": contest.megl.config.num_evidence_tokens,
            "llava": contest.llava.config.image_seq_length,
        },
        "flops": {step: count_flops(getattr(contest, step)) for step in STEPS},
    }


def measure(arguments):
    """All figures of the page, as JSON has them: times in seconds, memory in bytes."""
    figures = {
        "machine": machine(arguments),
        "rationale_tokens": RATIONALE_TOKENS,
        "label_tokens": LABEL_TOKENS,
        "prompt_tokens": PROMPT_TOKENS,
        "counted": {name: count(name) for name in SIZES},
        "seconds": {},
        "memory": {},
    }
    page = Page(Contest, arguments)
    figures["memory"]["libraries"] = page.run(peak_memory, arguments.sizes[0], "nothing")
    for name in arguments.sizes:
        for batch_size in arguments.batch_sizes:
            key, options = f"{name}, batch {batch_size}", {"batch_size": batch_size}
            rounds = page.run(compare, name, *TIMED_STEPS, **options)
            figures["seconds"][key] = dict(zip(TIMED_STEPS, zip(*rounds, strict=True), strict=True))
            figures["memory"][key] = {
                step: page.run(peak_memory, name, step, **options) for step in ("megl_answer", "llava_answer")
            }
    return figures


# ---- The page ----


def time_rows(seconds, first, second, goal):
    rows = []
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times[first], times[second], strict=True)]
        ratio = statistics.median(ratios)
        verdict = "yes" if ratio <= goal else "no"
        milliseconds = (f"{1000 * statistics.median(times[step]):,.0f}" for step in (first, second))
        rows.append([name, f"**{ratio:.3f}**", f"{min(ratios):.3f} to {max(ratios):.3f}", verdict, *milliseconds])
    return rows


def time_section(seconds, title, first, second, goal):
    header = ["size", "ratio", "spread", f"≤ {goal}", "MEGL, ms", "LLaVA, ms"]
    return [f"### To the {title}", table(header, time_rows(seconds, first, second, goal))]


def pair_cells(megl, llava, unit, digits=1):
    return [f"**{megl / llava:.3f}**", f"{megl / unit:,.{digits}f}", f"{llava / unit:,.{digits}f}"]


def model_rows(counted):
    return [
        [name, *(str(count) for count in c["visual_tokens"].values()), *pair_cells(*c["parameters"].values(), 1e6)]
        for name, c in counted.items()
    ]


def operation_rows(counted):
    return [
        [f"{name}, {what}", *pair_cells(c["flops"][first], c["flops"][second], 1e9)]
        for name, c in counted.items()
        for what, (first, second, _) in RATIOS.items()
    ]


def memory_rows(memory):
    rows = [["libraries alone", "", *(2 * [f"{memory['libraries'] / 2**20:,.0f}"])]]
    for name, peaks in memory.items():
        if name != "libraries":
            rows.append([name, *pair_cells(peaks["megl_answer"], peaks["llava_answer"], 2**20, digits=0)])
    return rows


def render(figures, command):
    """The page of [`measure`]'s figures."""
    times = [part for what, row in RATIOS.items() if row[-1] for part in time_section(figures["seconds"], what, *row)]
    sizes = "; ".join(f"*{name}*: {preset} against {tower}" for name, (preset, tower, _) in SIZES.items())
    sections = [
        "# Efficiency: MEGL against a LLaVA that answers by chain of thought",
        f"`{command}`, {figures['machine']}.",
        "The LLaVA is Transformers' own: a CLIP vision tower, a projector and a Llama that reads every patch of the "
        "picture. It writes the rationale and then the label, so that its label costs the rationale as well. Both "
        "have the same language model, a key-value cache, one precision and as many threads; each vision model takes "
        f"the picture at its own size. {figures['rationale_tokens']} rationale tokens are forced upon both, and the "
        f"LLaVA writes {figures['label_tokens']} more for the label. Prompts have {figures['prompt_tokens']} tokens "
        "besides the picture. Weights are random, which costs what trained ones do; what trained ones reach is in "
        "[results.md](results.md), study *efficiency*. "
        f"Sizes: {sizes}. In *sample-vit* both vision models have one shape. What is not among the times was counted "
        "alone.",
        "## Models",
        table(MODEL_HEADER, model_rows(figures["counted"])),
        "## Operations for one picture",
        "By `torch.utils.flop_counter`: matrix products and convolutions, a multiplication and an addition being two.",
        table(["size, to the", "ratio", "MEGL, GFLOP", "LLaVA, GFLOP"], operation_rows(figures["counted"])),
        "## Time",
        "Ratios are medians over rounds in which all three answers were timed in turns, in one process; the spread is "
        "their least and greatest. Times are medians of this machine and mean nothing on another.",
        *times,
        "## Peak memory of the whole answer",
        "Of a process of its own, on a CPU with the libraries in it; on a GPU what torch allocated.",
        table(["size", "ratio", "MEGL, MiB", "LLaVA, MiB"], memory_rows(figures["memory"])),
    ]
    return "\n\n".join(sections) + "\n"


def main():
    arguments = parse_arguments()
    output = Path(arguments.output)
    if output.suffix != ".md":
        sys.exit(f"efficiency: `--output` must be a Markdown file (.md), got {output}.")
    for path in (output, output.with_suffix(".json")):
        if path.exists() and not arguments.overwrite:
            sys.exit(f"efficiency: {path} exists: choose another `--output`, or `--overwrite` it.")
    figures = measure(arguments)
    page = render(figures, " ".join(["python -m studies.llava.efficiency", *sys.argv[1:]]))
    write_file(output, page)
    write_file(output.with_suffix(".json"), json.dumps(figures, indent=2) + "\n")
    print(page)


if __name__ == "__main__":
    main()
