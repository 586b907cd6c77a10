"""`examples/photographs` on made-up stamps and wallpapers."""

import hashlib
import json
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_builders import ObjectMe, build_dataset, place_of
from examples.photographs.make_photographs import FOLDERS, OWN_SCENE, SCENES, main, rationales, read_phrase


SIZES = {"train": 160, "validation": 32, "test": 64}
RED = (200, 0, 0)
GREY = (128, 128, 128)


def draw_stamp(path, number, fill=(*RED, 255), ground=(0, 0, 0, 0)):
    """An uneven shape with room around it, each number another."""
    stamp = Image.new("RGBA", (60, 50), ground)
    ImageDraw.Draw(stamp).polygon([(10, 10), (30 + number, 15), (50, 12), (45, 30 + number), (20, 40)], fill=fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp.save(path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder usr/share with ten stamps a class, three that are no cut-outs, and grey wallpapers."""
    root = tmp_path_factory.mktemp("packages")
    for label, folders in FOLDERS.items():
        for number in range(10):
            path = root / "tuxpaint/stamps" / folders[number % len(folders)] / f"{label}{number}.png"
            draw_stamp(path, number)
            path.with_suffix(".txt").write_text(f"A red {label}.\nde.utf8=Rot.\n")
    birds = root / "tuxpaint/stamps/animals/birds"
    draw_stamp(birds / "cartoon" / "tux.png", 0)
    draw_stamp(birds / "opaque.png", 0, ground=(0, 0, 255, 255))
    draw_stamp(birds / "clear.png", 0, fill=(*RED, 100))
    for name in [name for wallpapers in SCENES.values() for name in wallpapers]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (320, 200), GREY).save(root / name)
    return root


@pytest.fixture
def run(packages, monkeypatch):
    """`run(output, *options)`: runs the program with small pictures, as its user does."""

    def run(output, *options):
        sizes = [part for split, number in SIZES.items() for part in (f"--{split}", str(number))]
        arguments = ["--packages", str(packages), "--size", "32", *sizes, "--output", str(output), *options]
        monkeypatch.setattr(sys, "argv", ["make_photographs.py", *arguments])
        main()

    return run


@pytest.fixture
def release(run, tmp_path):
    run(tmp_path / "release")
    return tmp_path / "release"


def read(release, name):
    return json.loads((release / f"{name}.json").read_text())


def checksums(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_counts_groups_and_masks(run, capsys, tmp_path):
    release = tmp_path / "release"
    run(release)
    items, made_from = read(release, "exp_annotation"), read(release, "made_from")
    kinds = ((item["split"], item["ans"], item["group"], item["visual_exp"] is not None) for item in items.values())
    counts = Counter(kinds)
    for label in FOLDERS:
        of = {key: number for key, number in counts.items() if key[1] == label}
        train = {key[2:]: number for key, number in of.items() if key[0] == "train"}
        assert sum(train.values()) == 40
        assert sum(number for (group, _), number in train.items() if group == "conflicting") == 2
        assert sum(number for (_, explained), number in train.items() if explained) == 12
        assert of["validation", label, "aligned", True] == 2 and of["validation", label, "conflicting", True] == 6
        assert of["test", label, "aligned", True] == 4 and of["test", label, "conflicting", True] == 12
    for key, item in items.items():
        assert (made_from[key]["scene"] == OWN_SCENE[item["ans"]]) == (item["group"] == "aligned")
    assert "  train: 160 pictures, 152 aligned, 8 conflicting, 48 masks\n" in capsys.readouterr().out


def test_no_cut_out_is_in_two_splits(release):
    items, made_from = read(release, "exp_annotation"), read(release, "made_from")
    shown = {split: {made_from[key]["exemplar"] for key in items if items[key]["split"] == split} for split in SIZES}
    assert {split: len(names) for split, names in shown.items()} == {"train": 24, "validation": 4, "test": 12}
    assert len(set.union(*shown.values())) == 40
    assert not {name for names in shown.values() for name in names if name.endswith(("tux", "opaque", "clear"))}
    for key, item in items.items():
        assert made_from[key]["exemplar"].rpartition("/")[2].startswith(item["ans"])


def test_half_of_the_test_scenes_are_in_no_other_split(release):
    items, made_from = read(release, "exp_annotation"), read(release, "made_from")
    unseen = {list(wallpapers)[-1] for wallpapers in SCENES.values()}
    counts = Counter((items[key]["split"], made_from[key]["wallpaper"] in unseen) for key in items)
    assert counts == {("train", False): 160, ("validation", False): 32, ("test", False): 32, ("test", True): 32}
    for origin in made_from.values():
        assert origin["wallpaper"] in SCENES[origin["scene"]]


def test_masks_are_where_the_alpha_is(release, packages):
    items, made_from = read(release, "exp_annotation"), read(release, "made_from")
    forms = Counter()
    for key in [key for key in items if items[key]["visual_exp"]]:
        left, upper, right, lower = made_from[key]["box"]
        stamp = Image.open(packages / "tuxpaint/stamps" / f"{made_from[key]['exemplar']}.png")
        stamp = stamp.crop(stamp.getchannel("A").getbbox())
        alpha = np.asarray(stamp.resize((right - left, lower - upper), Image.Resampling.LANCZOS))[..., 3]
        mask = np.zeros((32, 32))
        mask[upper:lower, left:right] = alpha > 127
        values = np.load(release / items[key]["visual_exp"], allow_pickle=False)
        forms[values.shape, values.dtype.kind] += 1
        if values.shape[-1] == 32:
            top = 255 if values.dtype == np.uint8 else 1
            np.testing.assert_array_equal(values, np.broadcast_to(mask * top, values.shape))
        else:
            fine = np.kron(mask, np.ones((7, 7))).reshape(14, 16, 14, 16)  # 32 x 7 = 14 x 16
            np.testing.assert_allclose(values, fine.mean(axis=(1, 3)), atol=1e-6)
            assert values.max() <= 1

        colours = np.asarray(Image.open(release / items[key]["image_path"])).astype(int)
        inner = np.zeros((32, 32), bool)
        inner[upper:lower, left:right] = alpha == 255
        assert np.abs(colours[inner].mean(axis=0) - RED).max() < 40  # JPEG blurs the edges
        outer = np.ones((32, 32), bool)
        outer[upper:lower, left:right] = False
        assert np.abs(colours[outer].mean(axis=0) - GREY).max() < 8
        place = place_of(mask)
        assert items[key]["exp"] == [
            f"There is a red {items[key]['ans']} at the {place} of the picture.",
            f"The red {items[key]['ans']} at the {place} shows that this is a {items[key]['ans']}.",
        ]
    assert set(forms) == {((3, 32, 32), "f"), ((32, 32), "u"), ((14, 14), "f")}


@pytest.mark.parametrize(
    "description, first, second",
    [
        (
            "A peacock (a male peafowl).",
            "There is a peacock at",
            "The peacock at the centre shows that this is a bird.",
        ),
        ("A “Fuji” apple.", "There is a Fuji apple at", "The Fuji apple at the centre shows that"),
        ("A Seville orange, also called bitter.", "There is a Seville orange at", "The Seville orange at"),
        ("Anthurium", "There is an anthurium at", "The anthurium at"),
        ("Two flowers.", "There are two flowers at", "The two flowers at the centre show that"),
        ("Some flowers.", "There are some flowers at", "The flowers at the centre show that"),
        ("", "There is a bird at", "The bird at the centre shows"),
    ],
)
def test_sentences(tmp_path, description, first, second):
    (tmp_path / "stamp.txt").write_text(f"{description}\nde.utf8=x\n", encoding="utf-8")
    sentences = rationales(read_phrase(tmp_path / "stamp.txt", "bird"), "bird", "centre")
    assert sentences[0].startswith(first) and sentences[1].startswith(second)


def test_the_seed_draws_everything(release, run, tmp_path):
    for name, seed in (("same", "0"), ("other", "1")):
        run(tmp_path / name, "--seed", seed)
    ours, same, other = (checksums(folder) for folder in (release, tmp_path / "same", tmp_path / "other"))
    assert ours == same
    pictures = [name for name in ours if name.startswith("images")]
    assert len(pictures) == 256 and not [name for name in pictures if ours[name] == other[name]]
    origins, others = (read(folder, "made_from") for folder in (release, tmp_path / "other"))
    shown = [
        {origin["exemplar"] for key, origin in made.items() if key.startswith("test")} for made in (origins, others)
    ]
    assert shown[0] != shown[1]


def test_the_builder_reads_it(release, tmp_path):
    counts = build_dataset(ObjectMe, release, tmp_path / "object_me")
    assert counts["train"] == {label: (40, 12, 80) for label in ("bird", "mammal", "fruit", "flower")}
    assert counts["test"]["fruit"] == (16, 16, 32)


def test_shares_are_options(run, tmp_path):
    run(tmp_path / "release", "--aligned-share", "0.75", "--mask-share", "1")
    train = [item for item in read(tmp_path / "release", "exp_annotation").values() if item["split"] == "train"]
    assert Counter(item["group"] for item in train) == {"aligned": 120, "conflicting": 40}
    assert all(item["visual_exp"] for item in train)


def test_whole_or_absent(run, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("examples.photographs.make_photographs.place_of", fail)
        with pytest.raises(SystemExit, match="^make_photographs: the disk is full$"):
            run(tmp_path / "made" / "release")
    assert list((tmp_path / "made").iterdir()) == []

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="expected `output` to be a new or empty folder, got .*full, which is not"):
        run(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    run(tmp_path / "full", "--overwrite")
    assert not (tmp_path / "full" / "mine.txt").exists() and (tmp_path / "full" / "made_from.json").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seed", "-1"], "expected `seed` to be at least 0, got -1."),
        (["--size", "31"], "expected `size` to be at least 32, got 31."),
        (["--test", "3"], "expected `test` to be at least 4, got 3."),
        (["--mask_share", "1.1"], "expected `mask_share` to be a share in [0, 1], got 1.1."),
        (["--aligned_share", "nan"], "expected `aligned_share` to be a share in [0, 1], got nan."),
    ],
)
def test_bad_options(run, tmp_path, options, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "release", *options)
    assert str(stop.value) == f"make_photographs: {message}"
    assert not (tmp_path / "release").exists()


def copy_packages(packages, root):
    for path in packages.rglob("*"):
        if path.is_file():
            (root / path.relative_to(packages)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(packages)).write_bytes(path.read_bytes())


def test_bad_packages(run, packages, tmp_path):
    output, root = tmp_path / "release", tmp_path / "share"

    def refusal():
        with pytest.raises(SystemExit) as stop:
            run(output, "--packages", str(root))
        assert not output.exists()
        return str(stop.value)

    every = (
        "Install lomiri-wallpapers-16.04, mate-backgrounds, plasma-workspace-wallpapers, tuxpaint-stamps-default, or"
    )
    assert f"got {root}, which lacks 21 of 21 names" in (message := refusal()) and every in message

    copy_packages(packages, root)
    storm = root / "backgrounds/mate/nature/Storm.jpg"
    storm.unlink()
    assert "lacks 1 of 21 names, such as backgrounds/mate/nature/Storm.jpg. Install mate-backgrounds, or" in refusal()

    storm.write_bytes(b"GIF89a")
    assert f"expected a whole picture, got {storm}: " in refusal()

    Image.new("RGB", (320, 200)).save(storm)
    for number in range(4):
        (root / f"tuxpaint/stamps/food/fruit/fruit{number}.png").unlink()
    assert "expected at least 7 photographs with transparency of the class 'fruit'" in refusal()
