"""`megl annotate`: what people draw and write, from requests to a data set."""

import json
import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection

import numpy as np
import pytest
from browser import ENTER, SHIFT, actions, open_page, wait_until
from datasets import load_dataset
from PIL import Image
from tiny_vision import make_vision_model

from megl.annotation import store
from megl.annotation.exchange import export_annotations, import_annotations, pack_mask, unpack_mask
from megl.annotation.server import LARGEST_REQUEST, AnnotationServer
from megl.annotation.store import Annotations, Item, StaleError, from_runs, to_runs
from megl.annotation.suggestions import (
    Suggestion,
    Suggestions,
    load_suggester,
    place_in_queue,
    share_inside,
    take_turns,
)
from modeling_megl.processing_megl import make_image_processor


WIDTH, HEIGHT = 12, 8
SQUARE = np.zeros((HEIGHT, WIDTH), bool)
SQUARE[2:5, 3:7] = True
SAID = Suggestion("fish", 0.75, "it has fins", np.full((2, 3), 255, np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """Two fish and a house; one of the names is markup."""
    for number, name in enumerate(("fish/a.png", "fish/<b>ü.png", "house/c.png")):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 90, 120)).save(tmp_path / "own" / name)
    return tmp_path / "own"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def serving(folder, labels=(), **options):
    with Annotations(folder, labels) as annotations, AnnotationServer(annotations, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, body=None, secret=None, **headers):
    """`(status, content)` of an answer; a `body` that is no text is sent as JSON."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    if body is not None and not isinstance(body, str):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json", **headers} if body is not None else headers
    path = f"/{secret or server.secret}/{path}"
    connection.request("GET" if body is None else "POST", path, body, {**headers})
    answer = connection.getresponse()
    content = answer.read()
    is_json = answer.headers["Content-Type"] == "application/json"
    connection.close()
    return answer.status, json.loads(content) if is_json else content


def a_save(**changes):
    said = {"version": 0, "who": "Anna", "label": "fish", "rationales": ["it has fins"], "mask": to_runs(SQUARE)}
    return {**said, **changes}


# ---- Saving ----


def test_what_is_saved_is_what_prepare_reads(pictures, tmp_path, run, own_cache):
    with serving(pictures) as server:
        names = [item["name"] for item in ask(server, "queue")[1]["items"]]
        assert names == ["fish/<b>ü.png", "house/c.png", "fish/a.png"]
        assert ask(server, "items/0", a_save()) == (200, {})
        item = ask(server, "items/0")[1]
    assert item["size"] == [WIDTH, HEIGHT] and item["version"] == 1 and item["rationales"] == ["it has fins"]
    np.testing.assert_array_equal(from_runs(item["mask"], (WIDTH, HEIGHT)), SQUARE)
    assert read_lines(pictures / "metadata.jsonl") == [
        {
            "file_name": "fish/<b>ü.png",
            "label": "fish",
            "textual_explanations": ["it has fins"],
            "visual_explanation_file_name": "masks/fish/<b>ü.png-1.png",
        },
        {"file_name": "fish/a.png", "label": "fish"},
        {"file_name": "house/c.png", "label": "house"},
    ]
    shares = ("--validation_share", "0", "--test_share", "0")
    run("prepare_dataset", "object_me", "--source", pictures, "--output", tmp_path / "made", *shares)
    rows = load_dataset(str(tmp_path / "made"), split="train")
    row = next(row for row in rows if row["id"] == "fish/<b>ü.png")
    np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), 255 * SQUARE)
    assert row["textual_explanations"] == ["it has fins"]
    assert sum(row["visual_explanation"] is not None for row in rows) == 1


def test_the_mask_stays_unless_it_is_sent_and_an_empty_one_removes_it(pictures):
    with serving(pictures) as server:
        ask(server, "items/0", a_save())
        body = a_save(version=1, rationales=[])
        del body["mask"]
        assert ask(server, "items/0", body) == (200, {})
        assert ask(server, "items/0")[1]["mask"] == to_runs(SQUARE)
        assert ask(server, "items/0", a_save(version=2, mask=[WIDTH * HEIGHT])) == (200, {})
        assert ask(server, "items/0")[1]["mask"] is None
    assert read_lines(pictures / "metadata.jsonl")[0] == {
        "file_name": "fish/<b>ü.png",
        "label": "fish",
        "textual_explanations": ["it has fins"],
    }


def test_a_save_of_an_old_version_is_refused_with_what_the_other_wrote(pictures):
    with serving(pictures) as server:
        assert ask(server, "items/1", a_save(who="Ben", label="house")) == (200, {})
        before = (pictures / "annotations.jsonl").read_bytes()
        status, answer = ask(server, "items/1", a_save())
        assert status == 409 and answer["error"] == "Ben saved this picture meanwhile"
        assert answer["item"]["label"] == "house" and answer["item"]["mask"] == to_runs(SQUARE)
        assert ask(server, "items/1", {"version": 0, "who": "Anna", "skip": True})[0] == 409
        assert (pictures / "annotations.jsonl").read_bytes() == before
        assert ask(server, "items/1", a_save(version=answer["item"]["version"])) == (200, {})
    first, second = read_lines(pictures / "annotations.jsonl")
    assert (first["who"], first["version"], second["who"], second["version"]) == ("Ben", 1, "Anna", 2)
    assert first["before"] == {"label": "fish"} and second["before"] == first["after"]
    assert second["after"]["visual_explanation_file_name"] == "masks/fish/a.png-2.png"


def test_of_saves_at_once_one_counts(pictures):
    """Twenty people, one picture: one of them is told that it is saved."""
    answers = []
    with Annotations(pictures) as annotations:

        def save(who):
            try:
                annotations.save(0, 0, f"person {who}", "fish", [f"said by {who}"], SQUARE)
                answers.append(who)
            except StaleError:
                pass

        threads = [threading.Thread(target=save, args=(who,)) for who in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (who,) = answers
    (entry,) = read_lines(pictures / "annotations.jsonl")
    assert entry["after"]["textual_explanations"] == [f"said by {who}"]


def save_and_die(folder, stage):
    """A process that is killed before the log has its second save, in the midst of that, or before the metadata."""
    with Annotations(folder) as annotations:
        annotations.save(0, 0, "Anna", "fish", ["the first"], SQUARE)
        if stage == "log":
            annotations._append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        elif stage == "metadata":
            store.write_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        else:

            def half(path, mode, **options):
                with open(path, mode) as file:
                    file.write(b'{"file_name": "fish/')
                os.kill(os.getpid(), signal.SIGKILL)

            store.open = half
        annotations.save(0, 1, "Anna", "house", ["the second"], ~SQUARE)


@pytest.mark.parametrize(("stage", "counts"), [("log", False), ("line", False), ("metadata", True)])
def test_a_kill_while_saving_loses_nothing_that_was_saved(pictures, stage, counts):
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(pictures, stage))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with Annotations(pictures) as annotations:
        item = annotations.items[0]
        assert (item.version, item.row["label"]) == ((2, "house") if counts else (1, "fish"))
        assert item.row["textual_explanations"] == ["the second" if counts else "the first"]
        np.testing.assert_array_equal(annotations.mask(0), ~SQUARE if counts else SQUARE)
        annotations.save(0, item.version, "Anna", "fish", ["the third"], SQUARE)
        np.testing.assert_array_equal(annotations.mask(0), SQUARE)
    lines = read_lines(pictures / "annotations.jsonl")
    assert [line["version"] for line in lines] == list(range(1, len(lines) + 1))
    row = read_lines(pictures / "metadata.jsonl")[0]
    assert row == {"file_name": "fish/<b>ü.png", **lines[-1]["after"]}


def test_the_log_gives_the_state_anew(pictures):
    with Annotations(pictures) as annotations:
        annotations.save(0, 0, "Anna", "fish", ["it has fins"], SQUARE)
        annotations.save(0, 1, "Ben", "house", [], ~SQUARE)
        annotations.save(2, 0, "Ben", "house", ["it has a roof"])
        annotations.skip(1, 0, "Anna")
        items = [replace(item) for item in annotations.items]
    state = (pictures / "metadata.jsonl").read_bytes()
    (pictures / "metadata.jsonl").unlink()
    with Annotations(pictures) as annotations:
        assert annotations.items == items
        np.testing.assert_array_equal(annotations.mask(0), ~SQUARE)
    assert (pictures / "metadata.jsonl").read_bytes() == state
    earlier = read_lines(pictures / "annotations.jsonl")[1]["before"]["visual_explanation_file_name"]
    np.testing.assert_array_equal(np.asarray(Image.open(pictures / earlier)), 255 * SQUARE)


def test_what_is_edited_by_hand_stays_and_is_entered(pictures):
    with Annotations(pictures) as annotations:
        annotations.save(0, 0, "Anna", "fish", ["it has fins"])
    text = (pictures / "metadata.jsonl").read_text(encoding="utf-8")
    (pictures / "metadata.jsonl").write_text(text.replace("it has fins", "it swims"), encoding="utf-8")
    with Annotations(pictures) as annotations:
        assert annotations.items[0].row["textual_explanations"] == ["it swims"]
        assert annotations.items[0].version == 2
    assert read_lines(pictures / "annotations.jsonl")[1]["who"] == "edited in metadata.jsonl"


def test_a_folder_made_by_hand_is_gone_on_with(pictures):
    """Its own keys and masks stay as they are, and its mask is no picture."""
    grey = Image.fromarray(np.array([[200, 100, 0]], np.uint8).repeat(2, axis=0))
    (pictures / "drawn").mkdir()
    grey.save(pictures / "drawn" / "a.png")
    row = {"file_name": "fish/a.png", "label": "shark", "visual_explanation_file_name": "drawn/a.png", "group": "sea"}
    (pictures / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with Annotations(pictures, ["boat"]) as annotations:
        assert [item.file_name for item in annotations.items] == ["fish/<b>ü.png", "fish/a.png", "house/c.png"]
        assert annotations.labels == ["boat", "fish", "house", "shark"]
        assert annotations.mask(1)[:, :4].all() and not annotations.mask(1)[:, 7:].any()
        annotations.save(1, 0, "Anna", "shark", ["it bites"])
    assert read_lines(pictures / "metadata.jsonl")[1] == {**row, "textual_explanations": ["it bites"]}


def test_a_flat_folder_takes_its_classes_from_the_option_or_the_model(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="expected classes, got pictures without any. Name the classes by `--labels`"):
        Annotations(tmp_path)
    assert Annotations(tmp_path, otherwise=["owl"]).labels == ["owl"]
    with Annotations(tmp_path, ["cat"], otherwise=["owl"]) as annotations:
        assert annotations.labels == ["cat"]
        annotations.skip(0, 0, "Anna")
        assert not (tmp_path / "metadata.jsonl").exists()
        annotations.save(0, 1, "Anna", "cat", [])
    assert read_lines(tmp_path / "metadata.jsonl") == [{"file_name": "a.jpg", "label": "cat"}]


def test_folders_that_cannot_be_annotated(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected pictures, got none"):
        Annotations(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a folder of pictures, got"):
        Annotations(pictures / "fish" / "a.png")
    with Annotations(pictures), pytest.raises(FileExistsError, match="the only program that writes"):
        Annotations(pictures).__enter__()
    (pictures / "fish" / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="Write its lines into that, or move it away"):
        Annotations(pictures)


def test_links_out_of_the_folder_are_not_followed(pictures, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    (pictures / "fish" / "z.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "elsewhere").mkdir()
    (pictures / "masks").symlink_to(tmp_path / "elsewhere")
    with serving(pictures) as server:
        status, answer = ask(server, "items/2/picture")
        assert status == 400 and "a symbolic link out of it" in answer["error"]
        status, answer = ask(server, "items/0", a_save())
        assert status == 400 and "a symbolic link out of it" in answer["error"]
    assert not any((tmp_path / "elsewhere").iterdir()) and not (pictures / "annotations.jsonl").exists()


# ---- Requests ----


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"path": "queue", "Host": "evil.example:80"}, 403, "other sites"),
        ({"path": "queue", "Origin": "http://evil.example"}, 403, "other sites"),
        ({"path": "queue", "Origin": "null"}, 403, "other sites"),
        ({"path": "queue", "secret": "wrong"}, 403, "not the one that the program printed"),
        ({"path": "items/3"}, 404, "nothing at this address"),
        ({"path": "items/../../metadata.jsonl"}, 404, "nothing at this address"),
        ({"path": "items/0/%2e%2e/picture"}, 404, "nothing at this address"),
        ({"path": "items/0/map"}, 404, "not looked at this picture"),
        ({"path": "queue", "body": {}}, 404, "nothing to save"),
        ({"body": a_save(), "Content-Type": "text/plain"}, 415, "application/json"),
        ({"body": "{}", "Content-Length": str(LARGEST_REQUEST + 1)}, 413, "at most 16,000,000 bytes"),
        ({"body": "{}", "Content-Length": "-1"}, 411, "length"),
        ({"body": "[" * 100_000}, 400, "expected a body of JSON"),
        ({"body": []}, 400, "expected an object"),
        ({"body": a_save(path="/etc/passwd")}, 400, "keys among"),
        ({"body": a_save(label="bird")}, 400, "`label` to be one of"),
        ({"body": a_save(label=None)}, 400, "`label` to be one of"),
        ({"body": a_save(rationales="it has fins")}, 400, "list of rationales"),
        ({"body": a_save(rationales=["x"] * 51)}, 400, "at most 50 rationales"),
        ({"body": a_save(rationales=["x" * 10_001])}, 400, "at most 10,000 characters"),
        ({"body": a_save(who="")}, 400, "`who` to be a name"),
        ({"body": a_save(who="x" * 101)}, 400, "at most 100 characters"),
        ({"body": a_save(mask=[95])}, 400, "a `mask` of 12 x 8 pixels, got one of 95 pixels"),
        ({"body": a_save(mask=[10**30])}, 400, "a `mask` of 12 x 8 pixels"),
        ({"body": a_save(mask=[-1, 97])}, 400, "lengths of runs"),
        ({"body": a_save(mask="AAAA")}, 400, "lengths of runs"),
    ],
)
def test_refused_requests(pictures, request_, status, message):
    with serving(pictures) as server:
        answer = ask(server, **{"path": "items/0", **request_})
        assert answer[0] == status and message in answer[1]["error"]
    assert not (pictures / "annotations.jsonl").exists() and not (pictures / "masks").exists()


def test_the_page_runs_no_other_code_and_the_picture_is_as_seen(pictures):
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(pictures / "fish" / "turned.jpg", exif=exif)
    with serving(pictures) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.address.startswith(f"http://127.0.0.1:{server.server_port}/") and len(server.secret) == 32
        origin = {"Host": "localhost:99", "Origin": "http://localhost:99"}  # by a tunnel from another machine
        status, page = ask(server, "", **origin)
        assert status == 200 and page.startswith(b"<!doctype html>")
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request("GET", f"/{server.secret}/items/2/picture")
        answer = connection.getresponse()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert Image.open(answer).size == (20, 30)
        assert ask(server, "items/2")[1]["size"] == [20, 30]


def test_runs_of_a_mask():
    mask = np.array([[1, 1, 0], [0, 0, 1]], bool)
    assert to_runs(mask) == [0, 2, 3, 1] and to_runs(~mask) == [2, 3, 1]
    np.testing.assert_array_equal(from_runs([0, 2, 3, 1], (3, 2)), mask)


# ---- What helps most ----


def test_the_queue_follows_the_reasonability_matrix():
    masked = {"label": "fish", "visual_explanation_file_name": "masks/a.png"}
    cases = [
        (Item("sure and wrong", {"label": "house"}), replace(SAID, score=0.9)),
        (Item("wrong", {"label": "house"}), replace(SAID, score=0.6)),
        (Item("map far off", masked), replace(SAID, inside=0.1)),
        (Item("map off", masked), replace(SAID, inside=0.4)),
        (Item("no mask, unsure", {"label": "fish"}), replace(SAID, score=0.55)),
        (Item("no mask, unknown to the model", {"label": "boat"}), SAID),
        (Item("no label", {}), replace(SAID, score=0.8)),
        (Item("no mask, not looked at", {"label": "fish"}), None),
        (Item("well, unsure", masked), replace(SAID, inside=0.5, score=0.6)),
        (Item("well", masked), replace(SAID, inside=0.9, score=0.99)),
        (Item("put off", {"label": "house"}, version=1, who="Ben", skipped=True), SAID),
        (Item("done", {"label": "house"}, version=2, who="Anna"), SAID),
    ]
    placed = [(item.file_name, *place_in_queue(item, said, ["fish", "house"])) for item, said in reversed(cases)]
    placed.sort(key=lambda one: one[1])
    assert [name for name, *_ in placed] == [item.file_name for item, _ in cases]
    reasons = {name: reason for name, _, reason in placed}
    assert reasons["sure and wrong"] == "label wrong? The model says fish, 90% sure"
    assert reasons["map off"] == "map off: 40% of it in the mask"
    assert reasons["no label"] == "no label and no mask, 80% sure"
    assert reasons["done"] == "done by Anna"


def test_masks_come_to_all_classes_alike():
    masked = {"label": "fish", "visual_explanation_file_name": "masks/a.png"}
    rows = [{"label": "fish"}, masked, {"label": "fish"}, {"label": "house"}, {"label": "house"}, {}]
    assert take_turns([Item("a.png", row) for row in rows]) == [1, 2, 2, 0, 1, 0]


def test_the_share_of_a_map_inside():
    mask = np.zeros((4, 4), bool)
    mask[:2, :2], mask[2:, 3] = True, True
    saliency = np.array([[100, 200], [50, 50]], np.uint8)
    # The cells are covered by 1, 0, 0 and 1/2.
    assert share_inside(saliency, mask) == pytest.approx((100 + 25) / 400)
    assert share_inside(np.zeros((2, 2), np.uint8), mask) == 0


def test_a_model_stops_at_the_picture_that_it_looks_at(pictures):
    looks, goes_on = threading.Event(), threading.Event()

    def suggest(image):
        looks.set()
        goes_on.wait(20)
        return SAID

    with Annotations(pictures) as annotations:
        suggestions = Suggestions(annotations, suggest)
        suggestions.start()
        assert looks.wait(20)
        stopping = threading.Thread(target=suggestions.stop)
        stopping.start()
        while not suggestions.ended:
            pass
        goes_on.set()
        stopping.join(20)
        assert not suggestions.is_alive() and list(suggestions.found) == [0]


def test_a_model_looks_at_all_and_first_at_what_is_shown(pictures):
    (pictures / "house" / "bad.png").write_bytes(b"no picture")
    with Annotations(pictures) as annotations:
        annotations.save(0, 0, "Anna", "fish", [], SQUARE)
        seen = []
        suggestions = Suggestions(annotations, lambda image: seen.append(image.getpixel((0, 0))[0]) or SAID)
        suggestions.wanted = 3
        suggestions.run()
        assert seen == [120, 60, 0] and list(suggestions.found) == [3, 0, 1]
        assert suggestions.found[0].inside == pytest.approx(SQUARE.mean()) and suggestions.found[1].inside is None
        assert "which does not decode" in suggestions.failed[2]
        server = AnnotationServer(annotations, suggestions=suggestions, class_names=["fish", "house"], name="Anna")
        with server:
            assert server.said(1) == {"label": "fish", "score": 0.75, "rationale": "it has fins"}
            assert "does not decode" in server.said(2)["error"]
            server.item(1, "another session")
            queue = server.queue("this one")
    assert [item["number"] for item in queue["items"]] == [3, 1, 2, 0]
    assert [item["busy"] for item in queue["items"]] == [False, True, False, False]
    assert (queue["labels"], queue["name"], queue["looked_at"]) == (["fish", "house"], "Anna", 4)


def test_models_that_suggest(make_model, processor, tmp_path):
    image = Image.new("RGB", (300, 200), "orange")
    model = make_model("megl-resnet-tiny")
    model.save_pretrained(tmp_path / "megl")
    processor.save_pretrained(tmp_path / "megl")
    suggest, class_names = load_suggester(tmp_path / "megl")
    (expected,) = model.explain(image, processor)
    said = suggest(image)
    assert class_names == list(model.config.id2label.values())
    assert (said.label, said.rationale) == (expected["label"], expected["rationale"])
    assert said.score == pytest.approx(expected["score"]) and said.saliency.shape == (171, 256)
    assert said.saliency.max() > 200
    (tmp_path / "megl" / "training_settings.json").write_text('{"text_loss_weight": 0}')
    assert load_suggester(tmp_path / "megl")[0](image).rationale == ""

    make_vision_model("resnet").save_pretrained(tmp_path / "plain")
    make_image_processor((32, 32), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "plain")
    suggest, class_names = load_suggester(tmp_path / "plain")
    said = suggest(image)
    assert said.label in class_names and said.rationale == "" and 0 < said.score <= 1
    assert said.saliency.dtype == np.uint8 and said.saliency.ndim == 2


# ---- The browser ----


def drag(driver, *points):
    """Drags the mouse along points, from the middle of the view."""
    view = driver.find_element("id", "view")
    steps = actions(driver).move_to_element_with_offset(view, *points[0]).click_and_hold()
    for point in points[1:]:
        steps.move_to_element_with_offset(view, *point)
    steps.release().perform()


def test_a_mask_that_is_drawn_in_a_browser_is_in_the_data_set_with_equal_pixels(tmp_path, run, own_cache):
    pictures = tmp_path / "own"
    pictures.mkdir()
    for name in ("<i>1.png", "2.png"):
        Image.new("RGB", (60, 40), "teal").save(pictures / name)
    (pictures / "1.png").write_bytes(b"no picture, and passed over")
    with serving(pictures, ["<b>fish"], name="Anna") as server, open_page(server.address) as driver:
        wait_until(driver, "document.getElementById('view').dataset.ready === '1'")
        assert driver.find_element("id", "name").text == "2.png"
        script = "document.getElementById('label').value = '<b>fish'"
        drag(driver, (-120, 0), (0, 60), (100, -30))
        driver.find_element("id", "rationales").send_keys("it has <i>fins</i>\nit swims")
        drawn = np.array(driver.execute_script(f"{script}; return Array.from(mask)"), bool).reshape(40, 60)
        driver.find_element("id", "save").click()
        wait_until(driver, "document.getElementById('view').dataset.ready === '2'")
        assert driver.find_element("id", "name").text == "<i>1.png"
        assert driver.find_element("id", "message").text == "2.png: saved"
        assert "done by Anna" in driver.find_element("id", "list").text
        driver.find_element("id", "label").send_keys("<b>fish")
        ask(server, "items/2", a_save(who="Ben <b>", label="<b>fish", mask=None))
        driver.find_element("id", "save").click()
        wait_until(driver, "document.getElementById('conflict').open")
        assert driver.find_element("id", "conflict-title").text.startswith("Ben <b> saved this picture")
        assert driver.find_element("id", "their-text").text == "<b>fish\nit has fins"
        assert driver.find_elements("css selector", "#list b, #list i, dialog h2 b, select b") == []
    (pictures / "1.png").unlink()
    assert 0.02 < drawn.mean() < 0.5
    shares = ("--validation_share", "0", "--test_share", "0")
    run("prepare_dataset", "object_me", "--source", pictures, "--output", tmp_path / "made", *shares)
    rows = {row["id"]: row for row in load_dataset(str(tmp_path / "made"), split="train")}
    np.testing.assert_array_equal(np.asarray(rows["2.png"]["visual_explanation"]), 255 * drawn)
    assert rows["2.png"]["textual_explanations"] == ["it has <i>fins</i>", "it swims"]
    assert rows["<i>1.png"]["textual_explanations"] == ["it has fins"]


def view_points(driver, *points):
    """Points of the picture, in pixels, as whole pixels from the middle of the view."""
    script = """const view = document.getElementById('view'), [x, y] = arguments;
        return [zoom.x + x * zoom.scale - view.clientWidth / 2, zoom.y + y * zoom.scale - view.clientHeight / 2]"""
    return [[round(side) for side in driver.execute_script(script, x, y)] for x, y in points]


def press(driver, *keys):
    for key in keys:
        actions(driver).send_keys(key).perform()


def shown_mask(driver):
    return np.array(driver.execute_script("return Array.from(mask)"), bool).reshape(40, 60)


def test_tools_and_keys_and_a_second_tab(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / "own" / "fish").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "teal").save(tmp_path / "own" / "fish" / name)
    half = replace(SAID, saliency=np.array([[0, 255]], np.uint8).repeat(30, axis=1).repeat(40, axis=0))
    with Annotations(tmp_path / "own") as annotations:
        suggestions = Suggestions(annotations, lambda image: half)
        suggestions.run()
    expected = np.zeros((40, 60), bool)
    with (
        serving(tmp_path / "own", suggestions=suggestions, class_names=["fish"]) as server,
        open_page(server.address) as driver,
    ):
        wait_until(driver, "document.getElementById('view').dataset.ready === '0' && mapReady")
        press(driver, "r")
        drag(driver, *view_points(driver, (10, 5), (30, 20)))
        expected[5:20, 10:30] = True
        np.testing.assert_array_equal(shown_mask(driver), expected)
        press(driver, "+", "+")
        actions(driver).key_down(SHIFT).perform()
        drag(driver, *view_points(driver, (20, 10), (30, 20)))
        actions(driver).key_up(SHIFT).perform()
        smaller = expected.copy()
        smaller[10:20, 20:30] = False
        np.testing.assert_array_equal(shown_mask(driver), smaller)
        press(driver, "z")
        np.testing.assert_array_equal(shown_mask(driver), expected)
        press(driver, "y")
        np.testing.assert_array_equal(shown_mask(driver), smaller)
        press(driver, "0", "x", "p")
        assert not shown_mask(driver).any()
        view = driver.find_element("id", "view")
        for corner in view_points(driver, (40, 20), (20, 20), (20, 30), (40, 30)):
            actions(driver).move_to_element_with_offset(view, *corner).click().perform()
        press(driver, ENTER)
        polygon = np.zeros((40, 60), bool)
        polygon[20:30, 20:40] = True
        np.testing.assert_array_equal(shown_mask(driver), polygon)
        press(driver, "e")
        drag(driver, *view_points(driver, (20, 25), (40, 25)))
        assert not shown_mask(driver)[25, 20:40].any()
        press(driver, "m", "a")
        np.testing.assert_array_equal(shown_mask(driver), np.arange(60) >= np.full((40, 1), 30))
        assert driver.find_element("id", "rationales").get_attribute("value") == "it has fins"
        driver.switch_to.new_window("tab")
        driver.get(server.address)
        wait_until(driver, "document.getElementById('view').dataset.ready === '1'")
        assert "open elsewhere" in driver.find_element("id", "list").text


# ---- Other programs' files ----


@pytest.mark.parametrize("kind", ["coco", "label_studio"])
def test_what_is_exported_comes_back(pictures, tmp_path, run, capsys, kind):
    with Annotations(pictures) as annotations:
        annotations.save(0, 0, "Anna", "fish", ["it has fins", "it swims"], SQUARE)
        annotations.save(2, 0, "Anna", "house", [], ~SQUARE)
    run("annotate", pictures, f"--export_{kind}", tmp_path / "out.json")
    rows = read_lines(pictures / "metadata.jsonl")
    with Annotations(pictures) as annotations:
        annotations.save(0, 1, "Ben", "house", ["it has a door"], ~SQUARE)
        annotations.save(2, 1, "Ben", "fish", [], None)
    (pictures / "fish" / "a.png").unlink()
    metadata = (pictures / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (pictures / "metadata.jsonl").write_text(metadata[0] + metadata[2], encoding="utf-8")
    run("annotate", pictures, f"--import_{kind}", tmp_path / "out.json")
    said = capsys.readouterr().out
    # Label Studio's tasks have the label of a picture without a mask too.
    assert "out.json: 2 pictures taken in; 1 that are not in the folder, such as fish/a.png" in said
    with Annotations(pictures) as annotations:
        for place, row, mask in ((0, rows[0], SQUARE), (1, rows[2], ~SQUARE)):
            item = annotations.items[place]
            assert {**row, "visual_explanation_file_name": item.row["visual_explanation_file_name"]} == {
                "file_name": item.file_name,
                **item.row,
            }
            assert (item.version, item.who) == (3, "imported from out.json")
            np.testing.assert_array_equal(annotations.mask(place), mask)


def test_coco_is_as_its_tools_have_it(pictures):
    masks = pytest.importorskip("pycocotools.mask")
    with Annotations(pictures) as annotations:
        annotations.save(0, 0, "Anna", "fish", [], SQUARE)
        content = json.loads(export_annotations(annotations, "coco"))
    (entry,) = content["annotations"]
    rle = masks.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)
    np.testing.assert_array_equal(masks.decode(rle), SQUARE)
    assert entry["bbox"] == masks.toBbox(rle).tolist() == [3, 2, 4, 3] and entry["area"] == masks.area(rle) == 12
    assert content["categories"] == [{"id": 0, "name": "fish"}, {"id": 1, "name": "house"}]


def test_polygons_and_regions_of_several_names(pictures, tmp_path):
    """The label is that of the regions that cover the most, and its regions together are the mask."""
    pytest.importorskip("pycocotools.mask")
    polygon = [3, 2, 7, 2, 7, 5, 3, 5]
    entries = [(0, [polygon]), (0, [[0, 6, 12, 6, 12, 8, 0, 8]]), (1, [[0, 0, 4, 0, 4, 2, 0, 2]])]
    coco = {
        "images": [{"id": 5, "file_name": "somewhere/fish/a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 0, "name": "shark"}, {"id": 1, "name": "boat"}],
        "annotations": [{"image_id": 5, "category_id": name, "segmentation": shape} for name, shape in entries],
    }
    corners = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    results = [
        {"type": "polygonlabels", "value": {"points": corners, "polygonlabels": ["evidence"]}},
        {"type": "choices", "value": {"choices": ["boat"]}},
        {"type": "textarea", "value": {"text": "it floats"}},
    ]
    tasks = [
        {"data": {"image": "/data/upload/3/0a1b2c3d-c.png"}, "annotations": []},
        {
            "data": {"image": "/data/local-files/?d=own/house/c.png"},
            "annotations": [{"result": results}, {"result": [], "was_cancelled": True}],
        },
    ]
    for name, content in (("coco", coco), ("label_studio", tasks)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with Annotations(pictures) as annotations:
        annotations.save(1, 0, "Anna", "fish", ["it has fins"])
        assert import_annotations(annotations, tmp_path / "coco.json", "coco") == (1, [])
        assert import_annotations(annotations, tmp_path / "label_studio.json", "label_studio") == (1, [])
        shark, boat = annotations.items[1:]
        assert shark.row["label"] == "shark" and shark.row["textual_explanations"] == ["it has fins"]
        assert boat.row["label"] == "boat" and boat.row["textual_explanations"] == ["it floats"]
        expected = SQUARE.copy()
        expected[6:] = True
        np.testing.assert_array_equal(annotations.mask(1), expected)
        np.testing.assert_array_equal(annotations.mask(2), SQUARE)
        assert annotations.labels == ["boat", "fish", "house", "shark"]


def test_packed_run_lengths():
    """By hand: 4 values of 8 bits, counts of 3 bits; a run of 3 zeros, and a single 255."""
    bits = (
        f"{4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "1" + "00" + "010" + "00000000" + "0" + "00000" + "11111111"
    )
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert unpack_mask(packed, (1, 1), "here").tolist() == [[True]]
    mask = np.random.default_rng(0).random((150, 170)) > 0.5
    mask[:140] = True  # a run that takes two counts
    np.testing.assert_array_equal(unpack_mask(pack_mask(mask), (170, 150), "here"), mask)
    for wrong, size in ((packed, (2, 1)), (packed[:9], (1, 1)), ([256], (1, 1)), ("AAAA", (1, 1))):
        with pytest.raises(ValueError, match="here: expected run lengths of"):
            unpack_mask(wrong, size, "here")


def task(name, text):
    result = {"type": "textarea", "value": {"text": text}}
    return {"data": {"image": name}, "annotations": [{"result": [result]}]}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("coco", [], "expected COCO's `images`"),
        ("coco", {"images": [{"id": 1, "file_name": "fish/a.png", "width": 3, "height": 8}]}, "expected COCO's"),
        ("label_studio", {"images": []}, "expected Label Studio's tasks"),
        ("label_studio", [{"data": {"image": "fish/a.png"}, "annotations": [{}]}], "expected Label Studio's tasks"),
        ("label_studio", [task("fish/a.png", "it swims"), {"data": {}}], "expected Label Studio's tasks"),
        ("label_studio", [task("fish/a.png", "it swims"), task("house/c.png", " ")], "every rationale to be text"),
    ],
)
def test_other_files_are_refused_and_nothing_is_saved(pictures, tmp_path, kind, content, message):
    (tmp_path / "in.json").write_text(json.dumps(content))
    with Annotations(pictures) as annotations, pytest.raises(ValueError, match=message):
        import_annotations(annotations, tmp_path / "in.json", kind)
    assert not (pictures / "annotations.jsonl").exists()


# ---- The command ----


def test_the_command_serves_until_it_is_interrupted(
    pictures, tmp_path, run, capsys, monkeypatch, make_model, processor
):
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    served = []

    def serve(server):
        server.suggestions.join(60)
        served.append((server.annotations.labels, server.name, server.suggestions, server.address))
        raise KeyboardInterrupt

    monkeypatch.setattr(AnnotationServer, "serve_forever", serve)
    run("annotate", pictures, "--labels", "boat, fish", "--name", "Anna", "--model", tmp_path / "model")
    ((labels, name, suggestions, address),) = served
    assert suggestions.ended
    assert (labels, name, len(suggestions.found)) == (["boat", "fish", "house"], "Anna", 3)
    said = capsys.readouterr().out
    assert f"3 pictures. Open {address} on this machine; Ctrl-C ends." in said
    assert said.endswith("\n0 of 3 pictures are done.\n")
    with pytest.raises(SystemExit, match="^annotate: expected a folder of pictures, got nowhere"):
        run("annotate", "nowhere")
    with pytest.raises(SystemExit) as caught:
        run("annotate", pictures, "--port", "65536")
    assert caught.value.code == 2 and "`--port` must be 0 to 65535, got 65536" in capsys.readouterr().err


def test_at_its_end_the_next_command_is_told(pictures, tmp_path, run, capsys, monkeypatch, make_model):
    def serve(server):
        if number is not None:
            server.annotations.save(number, 0, "Anna", "fish" if number < 2 else "house", [], SQUARE)
        raise KeyboardInterrupt

    def told(*options):
        run("annotate", pictures, *options)
        return capsys.readouterr().out.strip().splitlines()[-1].split(" Next: megl ")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AnnotationServer, "serve_forever", serve)
    make_model("megl-resnet-tiny").save_pretrained("own-1")
    number = 1
    scratch = "--num_train_epochs 40 --per_device_train_batch_size 6 --learning_rate 0.003"
    assert told() == [
        "1 of 3 pictures are done. There is no mask of house yet, which `--recombine 1` would need.",
        f"train --model_name_or_path megl-resnet-tiny --dataset_name {pictures} --output_dir own-2 {scratch}",
    ]
    number = 2
    assert told()[1].endswith(f"--output_dir own-2 --recombine 1 {scratch}")
    (tmp_path / "own-1" / "training_settings.json").write_text('{"recombine": 1.0, "seed": 3}')
    monkeypatch.setattr("megl.scripts.annotate.load_suggester", lambda *arguments: (lambda image: SAID, ["fish"]))
    number = 0
    line = f"train --model_name_or_path own-1 --dataset_name {pictures} --output_dir own-2 --recombine 1"
    assert told("--model", "own-1") == ["3 of 3 pictures are done.", line]
    make_vision_model("resnet").save_pretrained("plain")
    number = None
    (pictures / "test").mkdir()
    assert told()[1] == f"prepare object_me --source {pictures} --output own_me"
    (pictures / "test").rmdir()
    assert told("--model", "plain")[1] == f"audit plain {pictures} --output own-audit"
