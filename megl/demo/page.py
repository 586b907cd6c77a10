"""The page of `megl demo`, and of the Spaces that it writes: these files, Transformers and Gradio are all it needs."""

import html
import json
import os
from pathlib import Path

import torch
from PIL import Image
from starlette.middleware import Middleware
from transformers import AutoModel, AutoProcessor

from .answers import Explainer, verdict
from .drawing import contours, overlay
from .guard import Guard, is_own, names_elsewhere


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read as Gradio is imported

import gradio as gr


TITLE = "What it sees, and why"
MOST_CLASSES = 5  # with their bars; the others are in the lists
LARGEST_FILE = 20_000_000  # bytes
VIEW = 640  # pixels of the longer side of a picture that is shown
NOTHING = -1  # in place of a class in the list of foils
GREY = -1  # in place of an example in the list of backgrounds
FONTS = ["system-ui", "sans-serif"]  # none is fetched
CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
.name {overflow-wrap: anywhere}
@media (max-width: 640px) {.side {display: contents !important} .controls {order: 2}}
"""
# The model's hooks are for one picture at a time.
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private"}


def view(image):
    """A picture at the size at which it is shown."""
    scale = VIEW / max(image.size)
    size = [max(round(side * scale), 1) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


class Panel:
    """
    What the page shows of one model.

    Args:
        explainer (`Explainer`): The model.
        examples (`list[Path]`): Pictures whose backgrounds can be taken.
    """

    def __init__(self, explainer, examples):
        self.explainer, self.examples = explainer, examples

    def build(self):
        """Make the components, in the layout that is open."""
        classes = [(label, number) for number, label in enumerate(self.explainer.labels)]
        gr.HTML(f"<h2 class='name'>{html.escape(self.explainer.name)}</h2>")
        self.seen = gr.State()  # picture, map and probabilities
        with gr.Row():
            with gr.Column(min_width=260):
                self.map = gr.Image(label="Map", interactive=False, buttons=[])
            with gr.Column(min_width=260):
                self.bars = gr.Label(label="Classes: click one for its reasons", num_top_classes=MOST_CLASSES)
                with gr.Row():
                    self.target = gr.Dropdown(classes, label="Why", min_width=100)
                    self.foil = gr.Dropdown(
                        [("–", NOTHING), *classes], value=NOTHING, label="rather than", min_width=100
                    )
                self.rationale = gr.Textbox(label="Rationale", interactive=False, lines=2)
        with gr.Row():
            with gr.Column(min_width=260):
                self.pasted = gr.Image(label="On another background", interactive=False, buttons=[])
            with gr.Column(min_width=260):
                self.verdict = gr.Textbox(label="What the label does", interactive=False, lines=2)
                self.after = gr.Label(label="Classes on that background", num_top_classes=3)

    def wire(self, picture, opacity, lines, threshold, other):
        """Tie the components to the picture and the controls of the page."""
        self.uploads = Path(picture.GRADIO_CACHE)
        answered = [self.seen, self.bars, self.target, self.foil, self.rationale]
        drawing = {"inputs": [self.seen, opacity, lines], "outputs": self.map, "show_progress": "hidden", **PRIVATE}
        swapping = {
            "inputs": [self.seen, threshold, other],
            "outputs": [self.pasted, self.verdict, self.after],
            **ONE_AT_A_TIME,
            **PRIVATE,
        }
        asking = {"inputs": [self.seen, self.target, self.foil], "outputs": answered, **ONE_AT_A_TIME, **PRIVATE}
        # The file is opened here, within bounds of our own, and not by Gradio: hence `preprocess`.
        opening = {"preprocess": False, "api_name": "explain", **ONE_AT_A_TIME}
        events = [picture.change(self.first, picture, answered, **opening)]
        events[0].failure(self.clear, None, [*answered, self.map, *swapping["outputs"]], **PRIVATE)
        events += [event(self.again, **asking) for event in (self.target.input, self.foil.input)]
        events += [self.bars.select(self.click, **asking)]
        for event in events:
            event.success(self.repaint, **drawing).success(self.swap, **swapping)
        for event in (opacity.change, lines.change):
            event(self.repaint, **drawing)
        for event in (threshold.release, other.input):
            event(self.swap, **swapping)

    def first(self, picture):
        """A new picture: the predicted class, and why."""
        if not (picture and picture["path"]):
            return self.clear()[:5]
        # Gradio 6.31 does not ask whether a path is that of an upload where a request leaves its `meta` out.
        if not Path(picture["path"]).resolve().is_relative_to(self.uploads.resolve()):
            raise gr.Error("This picture was not uploaded.", print_exception=False)
        try:
            image = self.explainer.open(picture["path"])
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        return self._answer(image, self.explainer.probabilities(image), None, NOTHING)

    def clear(self):
        """Nothing, in all components."""
        return None, None, None, NOTHING, "", None, None, "", None

    def again(self, seen, target, foil):
        """Another class of the picture, or another foil."""
        if seen is None:
            raise gr.Error("Choose a picture first.", print_exception=False)
        image, _, probabilities = seen
        return self._answer(image, probabilities, target, foil)

    def click(self, seen, target, foil, event: gr.SelectData):
        """The class whose bar was clicked."""
        return self.again(seen, self.explainer.labels.index(event.value), foil)

    def _answer(self, image, probabilities, target, foil):
        labels = self.explainer.labels
        foil = NOTHING if foil == target else foil
        names = [None if number in (None, NOTHING) else labels[number] for number in (target, foil)]
        answer = self.explainer.explain(image, *names)
        text = answer.rationale or "This model was not trained to write."
        return (image, answer.saliency, probabilities), probabilities, labels.index(answer.label), foil, text

    def repaint(self, seen, opacity, lines):
        """Picture and map: colours of this opacity, and level lines if they are asked for."""
        if seen is None:
            return None
        image, saliency, _ = seen
        drawn = overlay(view(image), saliency, opacity)
        return contours(drawn, saliency) if lines else drawn

    def swap(self, seen, threshold, other):
        """What the map shows, on another background, and what the label does."""
        if seen is None:
            return None, "", None
        image, saliency, before = seen
        donor = None if other == GREY else self.explainer.open(self.examples[other])
        pasted, after = self.explainer.on_background(image, saliency, threshold, donor)
        return view(pasted), verdict(before, after), after


class Page(gr.Blocks):
    """Blocks that take files from uploads alone."""

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """As Gradio's, which fetches a file from an address, whatever the component."""
        if names_elsewhere(inputs):
            raise gr.Error("Nothing is fetched from elsewhere: upload the picture.", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def build_page(explainers, examples=()):
    """
    The page.

    Args:
        explainers (`list[Explainer]`): The models, one or several beside each other.
        examples (`list[Path]`): Files of pictures to choose from, whose backgrounds can be taken.
    """
    panels = [Panel(explainer, examples) for explainer in explainers]
    backgrounds = [("plain grey", GREY), *((f"example {place + 1}", place) for place in range(len(examples)))]
    # Uploads are deleted after an hour, and when the program ends.
    with Page(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>Upload a picture, or choose one. Click a class for its map and its reasons.</p>")
        with gr.Row():
            with gr.Column(scale=2, min_width=280, elem_classes="side"):
                with gr.Column(min_width=280):
                    sources = ["upload", "clipboard"]
                    picture = gr.Image(label="Picture", type="filepath", sources=sources, height=260, buttons=[])
                    if examples:
                        gr.Examples([[str(path)] for path in examples], picture, label="Examples")
                with gr.Column(min_width=280, elem_classes="controls"):
                    opacity = gr.Slider(0, 1, 0.6, label="Opacity of the map")
                    lines = gr.Checkbox(False, label="Contours of the map, at 25, 50 and 75 %")
                    gr.HTML("<p>Does the label come from what the map shows? Paste that on another background.</p>")
                    threshold = gr.Slider(0.05, 0.95, 0.3, label="Keep where the map is at least")
                    other = gr.Dropdown(backgrounds, value=backgrounds[-1][1], label="Background from")
            for panel in panels:
                with gr.Column(scale=4 if len(panels) == 1 else 3, min_width=280):
                    panel.build()
        for panel in panels:
            panel.wire(picture, opacity, lines, threshold, other)
    return page.queue(max_size=20)


def launch(page, host=None, **options):
    """
    Serve a page, without a tunnel, within bounds.

    Args:
        page (`gradio.Blocks`): What [`build_page`] gives.
        host (`str`, *optional*): Address to listen on; by default the Space's, or else this machine's own. [`Guard`]
            says what is refused there.
        options: Of `gradio.Blocks.launch`.
    """
    if host and ":" in host:  # Gradio has addresses of IPv6 in brackets
        host = f"[{host.strip('[]')}]"
    theme = gr.themes.Default(font=FONTS, font_mono=["monospace"])
    settings = {"share": False, "max_file_size": LARGEST_FILE, "state_session_capacity": 100, "ssr_mode": False}
    settings |= {"enable_monitoring": False, "mcp_server": False, "run_history": False, "footer_links": []}
    settings["app_kwargs"] = {"middleware": [Middleware(Guard, own=host is not None and is_own(host))]}
    return page.launch(**settings, server_name=host, theme=theme, css=CSS, quiet=True, **options)


def serve_space(folder):
    """
    Serve the page of a Space that `megl demo --space` wrote.

    Args:
        folder (`Path`): The Space's; `demo.json` names its models and examples.
    """
    settings = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    explainers = []
    for one in settings["models"]:
        # The model's own code: whoever wrote the Space trusts it.
        source, options = one["source"], {"revision": one["revision"], "trust_remote_code": True}
        source = source if one["revision"] else folder / source
        model = AutoModel.from_pretrained(source, **options).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        processor = AutoProcessor.from_pretrained(source, **options)
        explainers.append(Explainer(one["name"], model, processor, one["writes"]))
    launch(build_page(explainers, [folder / name for name in settings["examples"]]))
