"""`megl demo`: what its page shows, in a browser too, and the Space that it writes."""

import json
import os
import re
import signal
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from browser import open_page, wait_until
from conftest import LABELS
from fresh_process import WITHOUT_THE_PROJECT
from fresh_process import run as run_fresh
from PIL import Image

from megl.demo import answers
from megl.demo.answers import Explainer, verdict
from megl.demo.drawing import contours, overlay, paste, without_object
from megl.demo.guard import is_own, names_elsewhere
from megl.demo.space import load_explainer, write_examples
from modeling_megl import ExplainedImageClassificationPipeline


gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'megl[app]'")
import httpx  # noqa: E402

from megl.demo.page import GREY, NOTHING, Panel, build_page, launch  # noqa: E402


EVIL = "<img src=x onerror=alert(1)>"
STEP = np.array([[0.0, 1.0]], np.float32)  # a map of two cells: the right half decides


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


@pytest.fixture()
def explainer(make_model, processor):
    """A model, one of whose classes is markup."""
    model = make_model("megl-vit-tiny")
    model.config.id2label, model.config.label2id = {0: "cat", 1: EVIL, 2: "owl"}, {"cat": 0, EVIL: 1, "owl": 2}
    return Explainer("<b>tiny</b>", model, processor)


@pytest.fixture()
def pictures(tmp_path):
    """Two pictures of noise, in a folder of their own."""
    random = np.random.default_rng(0)
    paths = [tmp_path / "pictures" / f"{name}.png" for name in ("a", "b")]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture()
def saved(make_model, processor, tmp_path):
    """The folder of a model, with what a training leaves beside it."""
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "birds")
    processor.save_pretrained(tmp_path / "birds")
    (tmp_path / "birds" / "optimizer.pt").write_text("stays")
    (tmp_path / "birds" / "README.md").write_text("---\nlicense: [mit, other]\n---\n# Birds\n")
    return tmp_path / "birds"


# ---- Drawing ----


def test_an_overlay_of_no_opacity_is_the_picture_and_of_full_one_the_map():
    image = Image.new("RGB", (8, 4), (10, 20, 30))
    assert overlay(image, STEP, 0).tobytes() == image.tobytes()
    shown = overlay(image, STEP, 1)
    assert shown.getpixel((0, 0)) == (10, 20, 30) and shown.getpixel((7, 0)) == (255, 0, 0)


def test_a_contour_lies_where_the_map_rises_to_its_level():
    # 24 columns of two cells: the map rises by 1/12 a column from 1/24 in column 6, and is 13/24 in column 12.
    shown = np.asarray(contours(Image.new("RGB", (24, 9)), STEP, levels=(0.5,)))
    assert (shown == shown[:1]).all()
    row = [tuple(pixel) for pixel in shown[0].tolist()]
    assert row[:10] == [(0, 0, 0)] * 10 and row[10:12] == [(40, 40, 40)] * 2
    assert row[12:14] == [(255, 115, 0)] * 2 and row[14:] == [(0, 0, 0)] * 10  # 230 * (1 - 0.5)


def test_what_the_map_shows_is_pasted_on_the_background():
    image, background = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (2, 2), "blue")
    row = [paste(image, STEP, 0.5, background).getpixel((column, 1)) for column in range(8)]
    assert row == [(0, 0, 255)] * 4 + [(255, 0, 0)] * 4
    assert paste(image, STEP, 0, background).tobytes() == image.tobytes()


def test_a_background_is_without_its_object():
    pixels = np.full((32, 64, 3), (0, 100, 200), np.uint8)
    pixels[:, 32:] = 255
    pixels[7:25, 3:21] = (255, 0, 0)  # a pixel wider than its map, as edges are
    saliency = np.zeros((32, 64), np.float32)
    saliency[8:24, 4:20] = 1
    found = np.asarray(without_object(Image.fromarray(pixels), saliency))
    assert (found[:, 32:] == 255).all() and (found[0, :32] == (0, 100, 200)).all()
    assert (found[:, :24] == (0, 100, 200)).all()  # of what is near, not of the mean of all
    everything = without_object(Image.fromarray(pixels), np.ones((1, 1)))
    assert everything.getcolors() == [(32 * 64, (128, 128, 128))]


# ---- Answers ----


def test_answers_are_the_pipelines(explainer, pictures):
    image = explainer.open(pictures[0])
    pipeline = ExplainedImageClassificationPipeline(model=explainer.model, processor=explainer.processor)
    expected = pipeline(image, top_k=3)
    found = explainer.probabilities(image)
    every = [expected, *expected["alternatives"]]
    assert list(found) == [one["label"] for one in every]
    assert list(found.values()) == pytest.approx([one["score"] for one in every])
    first = explainer.explain(image)
    assert (first.label, first.rationale) == (expected["label"], expected["rationale"])
    other = explainer.explain(image, every[1]["label"], EVIL if every[1]["label"] != EVIL else "cat")
    contrast = pipeline(image, target=every[1]["label"], foil=EVIL if every[1]["label"] != EVIL else "cat")
    assert (other.label, other.rationale) == (contrast["label"], contrast["rationale"])
    assert other.score == pytest.approx(contrast["score"]) and other.saliency.shape == (4, 4)
    large = torch.nn.functional.interpolate(torch.tensor(other.saliency)[None, None], (40, 60), mode="bilinear")
    np.testing.assert_allclose(large[0, 0], contrast["saliency"], atol=1e-5)
    silent = Explainer("", explainer.model, explainer.processor, writes=False)
    assert silent.explain(image).rationale == ""


def test_the_label_is_of_what_was_pasted(explainer, pictures):
    image, other = (explainer.open(path) for path in pictures)
    pasted, after = explainer.on_background(image, STEP, 0.5)
    assert pasted.crop((0, 0, 30, 40)).getcolors() == [(30 * 40, (128, 128, 128))]
    assert pasted.crop((30, 0, 60, 40)).tobytes() == image.crop((30, 0, 60, 40)).tobytes()
    assert after == explainer.probabilities(pasted) != explainer.probabilities(image)
    pasted, _ = explainer.on_background(image, STEP, 0.5, other)
    with torch.no_grad():
        seen = explainer.model(explainer.processor(images=[other])["pixel_values"]).saliency[0].numpy()
    assert pasted.crop((0, 0, 30, 40)).tobytes() == without_object(other, seen).crop((0, 0, 30, 40)).tobytes()


def test_the_verdict():
    before = {"cat": 0.9, "owl": 0.1}
    assert verdict(before, {"cat": 0.6, "owl": 0.4}) == "The label stays: cat, 90% before and 60% after."
    assert verdict(before, {"owl": 0.7, "cat": 0.3}) == "The label changes: cat (90%) before, owl (70%) after."


def test_pictures_are_opened_within_bounds(explainer, pictures, tmp_path, monkeypatch):
    turned = Image.new("RGB", (4000, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert explainer.open(tmp_path / "turned.jpg").size == (5, 1024)
    (tmp_path / "text.png").write_text(EVIL)
    with pytest.raises(ValueError, match="^This is no picture that can be shown: it is in no known format.$"):
        explainer.open(tmp_path / "text.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="still picture, got 2 frames") as error:
        explainer.open(tmp_path / "moves.gif")
    assert str(tmp_path) not in str(error.value)
    Image.open(pictures[0]).save(tmp_path / "cut.webp")
    (tmp_path / "cut.webp").write_bytes((tmp_path / "cut.webp").read_bytes()[:500])
    with pytest.raises(ValueError, match="^This is no picture that can be shown: it does not decode.$"):
        explainer.open(tmp_path / "cut.webp")
    monkeypatch.setattr(answers, "LARGEST_PICTURE", 60 * 40 - 1)
    with pytest.raises(ValueError, match="A picture has 2,399 pixels at most, got 60 x 40: make it smaller"):
        explainer.open(pictures[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="it has too many pixels"):
        explainer.open(pictures[0])


def test_no_program_is_run_on_a_picture(explainer, pictures, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Image.open(pictures[0]).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="it is in no known format"):
        explainer.open(tmp_path / "a.eps")
    assert not (tmp_path / "ran").exists()


# ---- The page ----


def test_a_panel_answers(explainer, pictures):
    panel = Panel(explainer, pictures)
    panel.uploads = pictures[0].parent
    seen, probabilities, target, foil, rationale = panel.first({"path": str(pictures[0])})
    assert target == explainer.labels.index(next(iter(probabilities))) and foil == NOTHING
    other = (target + 1) % 3
    again = panel.again(seen, other, target)
    assert again[1:4] == (probabilities, other, target) and again[4] != rationale
    assert panel.again(seen, other, other)[3] == NOTHING  # a class is no foil of its own
    assert panel.repaint(seen, 0, False).size == (640, 427)
    _, said, after = panel.swap(seen, 0.0, GREY)  # everything stays
    assert said.startswith("The label stays: ") and after == pytest.approx(probabilities)
    panel.explainer.writes = False
    assert panel.first({"path": str(pictures[0])})[4] == "This model was not trained to write."
    assert panel.first(None) == (None, None, None, NOTHING, "")
    pictures[1].write_text("no picture")
    with pytest.raises(gradio.Error, match="it is in no known format"):
        panel.first({"path": str(pictures[1])})


@contextmanager
def serving(explainers, examples=()):
    page = build_page(explainers, examples)
    launch(page, "127.0.0.1", prevent_thread_lock=True)
    try:
        yield page
    finally:
        page.close(verbose=False)


TEXT = (
    "[...document.querySelectorAll('label')].find(e => e.innerText.startsWith('{}'))?.querySelector('textarea').value"
)
MAP = "[...document.querySelectorAll('.block')].find(e => e.innerText.trim() == 'Map')?.querySelector('img')?.src"


def test_a_picture_in_the_browser(explainer, pictures):
    with serving([explainer], pictures) as page, open_page(page.local_url) as driver:
        wait_until(driver, "document.querySelector('input[type=file]') !== null")
        driver.find_element("css selector", "input[type=file]").send_keys(str(pictures[0]))
        wait_until(driver, TEXT.format("What the label does") + "?.startsWith('The label ')")
        image = explainer.open(pictures[0])
        probabilities = explainer.probabilities(image)
        answers = [explainer.explain(image, label).rationale for label in probabilities]
        first, second, _ = (re.sub("\r\n?", "\n", text) for text in answers)  # as pages have line ends
        assert first != second and driver.execute_script(f"return {TEXT.format('Rationale')}") == first
        shown = driver.execute_script(f"return {MAP}")
        body = driver.find_element("tag name", "body").text
        assert shown and EVIL in body and "<b>tiny</b>" in body
        assert not driver.find_elements("css selector", "h2 b, img[src=x]")
        bars = driver.find_elements("css selector", ".confidence-set")[:3]
        assert [bar.text.split()[0] for bar in bars] == [label.split()[0] for label in probabilities]
        bars[1].click()
        wait_until(driver, f"{TEXT.format('Rationale')} === {json.dumps(second)}")
        wait_until(driver, f"({MAP} ?? {json.dumps(shown)}) !== {json.dumps(shown)}")
        shown = driver.execute_script(f"return {MAP}")
        driver.find_element("css selector", "input[type=checkbox]").click()
        wait_until(driver, f"({MAP} ?? {json.dumps(shown)}) !== {json.dumps(shown)}")
        pictures[1].write_text("no picture")
        driver.find_element("css selector", "input[type=file]").send_keys(str(pictures[1]))
        wait_until(driver, "document.body.innerText.includes('it is in no known format')")
        wait_until(driver, f"{TEXT.format('Rationale')} === '' && !{MAP}")  # nothing of the picture before
        asked = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert asked and not [name for name in asked if not name.startswith((page.local_url, "data:", "blob:"))]


def ask(page, path):
    """The stream that answers a request for the picture at a path of the server's, without Gradio's `meta`."""
    sent = httpx.post(f"{page.local_url}gradio_api/call/explain", json={"data": [{"path": str(path)}]}).json()
    return httpx.get(f"{page.local_url}gradio_api/call/explain/{sent['event_id']}").text


def test_the_server_keeps_to_this_machine_and_to_its_bounds(explainer, pictures):
    with serving([explainer, explainer], pictures) as page:
        assert page.server_name == "127.0.0.1" and page.share_url is None and not page.analytics_enabled
        config = httpx.get(f"{page.local_url}config").json()
        assert sum(one["props"].get("label") == "Rationale" for one in config["components"]) == 2
        for host in ("evil.example", "127.0.0.1.evil.example", "[", "10.0.0.1:7860"):
            assert httpx.get(page.local_url, headers={"Host": host}).status_code == 403
        assert httpx.get(page.local_url, headers={"Host": "localhost:9000"}).status_code == 200
        upload = f"{page.local_url}gradio_api/upload"
        (path,) = httpx.post(upload, files={"files": ("a.png", pictures[0].read_bytes())}).json()
        assert "event: complete" in ask(page, path)
        for path in ("/etc/passwd", pictures[0]):
            assert "event: error" in ask(page, path)
            assert httpx.get(f"{page.local_url}gradio_api/file={path}").status_code == 403
        assert httpx.post(upload, files={"files": ("large.png", b"0" * 20_000_001)}).status_code == 413


def test_other_sites_pages_are_refused_and_links_followed(explainer, pictures):
    with serving([explainer]) as page:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
            files = {"files": ("a.png", pictures[0].read_bytes())}
            assert httpx.post(f"{page.local_url}gradio_api/upload", files=files, headers=headers).status_code == status
        headers |= {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert httpx.get(page.local_url, headers=headers).status_code == 200
        assert httpx.post(f"{page.local_url}gradio_api/upload", files=files, headers=headers).status_code == 403


def test_nothing_is_fetched(explainer, pictures, monkeypatch):
    fetched = []
    monkeypatch.setattr("safehttpx.async_validate_url", fetched.append)  # which each fetch of Gradio's begins with
    address = {"path": "http://elsewhere.example/a.png", "meta": {"_type": "gradio.FileData"}}
    with serving([explainer]) as page:
        run = f"{page.local_url}gradio_api/run/explain"
        assert httpx.post(run, json={"data": [address]}).json()["error"].startswith("Nothing is fetched")
        for number, event in page.fns.items():  # private ones too, whose inputs are no files
            asked = {"fn_index": number, "data": [address] * len(event.inputs), "session_hash": "a"}
            assert httpx.post(run, json=asked).status_code == (500 if event.inputs else 200)
        for path in (
            "file=http://elsewhere.example/a",
            "file=https://elsewhere.example",
            "file/http://elsewhere.example",
        ):
            assert httpx.get(f"{page.local_url}gradio_api/{path}").text == "Nothing is fetched from elsewhere."
    assert fetched == []


def test_addresses_anywhere_in_a_request():
    assert names_elsewhere([0, {"value": [{"path": "https://elsewhere.example/a"}]}])
    assert not names_elsewhere([{"path": "/tmp/a.png", "url": "http://127.0.0.1/file=/tmp/a.png"}, {"path": 5}, None])


def test_the_own_hosts():
    assert [is_own(host) for host in ("localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]")] == [True] * 5
    assert not any(is_own(host) for host in ("", "0.0.0.0", "::", "192.168.0.1", "localhost.evil.example"))


# ---- The command ----


def test_a_port_that_is_taken_and_what_is_no_model(run, saved, pictures):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"cannot listen on port {port} of 127.0.0.1: it is in use"):
            run("demo", saved, "--port", port)
    with pytest.raises(SystemExit, match="is no MEGL model"):
        run("demo", pictures[0].parent)
    with pytest.raises(SystemExit, match="demo: /no/such/folder is neither a folder nor a Hub id that can be reached"):
        run("demo", "/no/such/folder")
    with pytest.raises(SystemExit, match="pictures, which is not empty"):
        run("demo", saved, "--space", pictures[0].parent)


def test_the_command_serves(run, saved, pictures, tmp_path, own_cache, monkeypatch, capsys):
    served = []

    def block(page):
        config = httpx.get(f"{page.local_url}config").json()
        served.append([one["props"]["choices"] for one in config["components"] if one["type"] == "dropdown"])
        page.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", block)
    run("demo", saved, "--examples", pictures[0].parent, "--beside", saved)
    assert capsys.readouterr().out.startswith("Open http://127.0.0.1:")
    classes = [[label, number] for number, label in enumerate(LABELS)]
    backgrounds = [["plain grey", GREY], ["example 1", 0], ["example 2", 1]]
    assert served == [[backgrounds, *2 * [classes, [["–", NOTHING], *classes]]]]


@pytest.mark.parametrize("host, name", [("::1", "[::1]"), ("[::1]", "[::1]"), ("127.0.0.1", "127.0.0.1"), (None,) * 2])
def test_addresses_of_ipv6_are_in_brackets(explainer, monkeypatch, host, name):
    launched = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: launched.append(options["server_name"]))
    launch(build_page([explainer]), host)
    assert launched == [name]


def test_other_hosts_are_told_who_can_reach_the_page(run, saved, monkeypatch, capsys):
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: page.close(verbose=False))
    run("demo", saved, "--host", "0.0.0.0")
    assert "Listens on 0.0.0.0: everybody who can reach that can use the page" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_deletes_what_was_uploaded(run, saved, monkeypatch, number):
    scratch = []

    def killed(page):
        page.close(verbose=False)
        scratch.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        assert scratch[0].is_dir()
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(gradio.Blocks, "block_thread", killed)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            run("demo", saved)
    finally:
        signal.signal(number, before)
    assert not scratch[0].exists()


def test_the_missing_package_is_named(run, saved, monkeypatch):
    from megl.cli import main

    monkeypatch.delitem(sys.modules, "megl.demo.page")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["megl", "demo", str(saved)])
    with pytest.raises(SystemExit, match=r"megl demo: `gradio` is not installed: pip install 'megl\[app\]'"):
        main()


def test_examples_that_are_none(explainer, pictures, tmp_path, own_cache):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="^`--examples`: row 0 of .*bad: This is no picture that can be shown"):
        write_examples(str(tmp_path / "bad"), tmp_path, explainer)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must be a data set or a folder with pictures, in one of .*, got .*texts"):
        write_examples(str(tmp_path / "texts"), tmp_path, explainer)


def test_code_of_a_vision_model_needs_trust(saved):
    config = json.loads((saved / "config.json").read_text())
    config["vision_config"] |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pass `--trust_remote_code`"):
        load_explainer(str(saved))


# ---- The Space ----

SPACE = f"""{WITHOUT_THE_PROJECT}
import json, os, runpy, socket, threading, time
from pathlib import Path

sys.modules["megl"] = None
folder, picture, result = sys.argv[1:]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ["GRADIO_SERVER_PORT"] = str(port)
sys.path.insert(0, folder)  # as `python app.py` has it
options = {{"args": (folder + "/app.py",), "kwargs": {{"run_name": "__main__"}}, "daemon": True}}
server = threading.Thread(target=runpy.run_path, **options)
server.start()
while server.is_alive() and socket.socket().connect_ex(("127.0.0.1", port)):
    time.sleep(0.1)
from gradio_client import Client, handle_file

client = Client(f"http://127.0.0.1:{{port}}", verbose=False)
Path(result).write_text(json.dumps(client.predict(handle_file(picture), api_name="/explain")))
os._exit(0)  # the page is served for ever
"""


def test_a_space_answers_without_the_project(run, saved, pictures, tmp_path, own_cache):
    space = tmp_path / "space"
    run("demo", saved, "--beside", saved, "--examples", pictures[0].parent, "--space", space)
    front = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["sdk_version"], front["app_file"]) == ("gradio", gradio.__version__, "app.py")
    assert front["license"] == ["mit", "other"] and "models" not in front
    assert f"gradio=={gradio.__version__}" in (space / "requirements.txt").read_text().splitlines()
    files = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert {"examples/1.png", "examples/2.png", "model-1/model.safetensors", "model-2/modeling_megl.py"} <= files
    assert not [name for name in files if name.endswith((".pt", ".bin", ".pkl"))]
    assert str(tmp_path) not in "".join(
        (space / name).read_text() for name in files if name.endswith((".json", ".md"))
    )
    run_fresh(SPACE, space, pictures[0], tmp_path / "answer.json", cwd=tmp_path / "elsewhere", hub=tmp_path / "hub")
    bars, target, _, rationale = json.loads((tmp_path / "answer.json").read_text())
    expected = load_explainer(str(saved))
    answer = expected.explain(expected.open(pictures[0]))
    assert (bars["label"], rationale) == (answer.label, answer.rationale) and expected.labels[target] == answer.label
    assert bars["confidences"][0]["confidence"] == pytest.approx(answer.score, abs=1e-5)


def test_a_model_on_the_hub_is_named_by_its_revision(explainer, monkeypatch, tmp_path):
    from megl.demo import space

    cached = tmp_path / "snapshots" / ("0" * 40) / "config.json"
    files = {"config.json": str(cached), "modeling_megl.py": sys.modules[type(explainer.model).__module__].__file__}
    monkeypatch.setattr(space, "cached_file", lambda name, file, **_: files.get(file))
    monkeypatch.setattr(space, "read_config", lambda name: {"text_adapter": True})
    (tmp_path / "space").mkdir()
    space.write_space(tmp_path / "space", ["me/birds"], [explainer], [])
    (model,) = json.loads((tmp_path / "space" / "demo.json").read_text())["models"]
    assert (model["source"], model["revision"], model["writes"]) == ("me/birds", "0" * 40, True)
    front = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert front["models"] == ["me/birds"] and "license" not in front
    assert "peft==" in (tmp_path / "space" / "requirements.txt").read_text()


def test_a_space_of_older_code_is_refused(run, saved, tmp_path):
    code = (saved / "modeling_megl.py").read_text()
    (saved / "modeling_megl.py").write_text(code.replace("def probabilities(", "def scores("))
    with pytest.raises(SystemExit, match="code that lies with .*birds, which a Space runs, has no `probabilities`"):
        run("demo", saved, "--space", tmp_path / "space")
    assert not (tmp_path / "space").exists()
