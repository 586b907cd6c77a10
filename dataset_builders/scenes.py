"""The `sample`: scenes drawn by code from a seed, with exact visual explanations and rationales.

A scene is a subject (an object, or a person in action) on a textured background. In training nearly every subject
stands on the background of its class, in validation and test on any. Subjects and backgrounds are drawn larger than
the picture and reduced, and a subject's alpha channel is its visual explanation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .items import SPLITS
from .maps import encode_png


SIZE = 128  # pixels of a picture's side
SAMPLE_SIZES = {"train": 1200, "validation": 200, "test": 400}
ALIGNED_SHARE = 0.95  # of a class's training pictures, those on the background of the class
EXPLAINED_SHARE = 0.3  # of a class's training pictures, those that keep their visual explanation

PLACES = (
    "upper left",
    "upper centre",
    "upper right",
    "middle left",
    "centre",
    "middle right",
    "lower left",
    "lower centre",
    "lower right",
)
COLOURS = {
    "red": (216, 44, 46),
    "orange": (243, 139, 30),
    "yellow": (250, 216, 56),
    "green": (52, 168, 83),
    "blue": (46, 98, 222),
    "purple": (142, 68, 190),
}


@dataclass(frozen=True)
class Subject:
    """One class of the sample.

    Args:
        label (`str`): the class's name.
        background (`str`): the key in `BACKGROUNDS` that the class is tied to in training.
        draw (`Callable`): `draw(pen, colour, rng)` draws the subject on the unit square.
        rationales (`tuple[str, str]`): sentences with `{colour}`, `{a_colour}` ("a red", "an orange") and `{place}`.
        area (`tuple[float, float]`): the smallest and the largest share of the picture that it covers.
        tilt (`float`): how far it may be turned, in degrees.
    """

    label: str
    background: str
    draw: Callable
    rationales: tuple[str, str]
    area: tuple[float, float] = (0.08, 0.2)
    tilt: float = 8.0


@dataclass(frozen=True)
class Plan:
    """What one scene shows, apart from its random details."""

    subject: Subject
    background: str
    explained: bool


class Scenes:
    """The drawn sample as a source of rows. The same seed and sizes give the same bytes.

    Args:
        subjects (`tuple[Subject, ...]`): the classes.
        seed (`int`): draws everything.
        sizes (`dict[str, int]`, *optional*, defaults to `SAMPLE_SIZES`): number of pictures of each split.
    """

    OWN = False
    license = "apache-2.0"
    citation = None

    def __init__(self, subjects: tuple[Subject, ...], seed: int = 0, sizes: dict[str, int] | None = None):
        sizes = SAMPLE_SIZES if sizes is None else sizes
        if not set(sizes) <= set(SPLITS) or any(type(number) is not int or number < 1 for number in sizes.values()):
            raise ValueError(
                f"expected `sample_sizes` to give a whole number of at least 1 for splits among {list(SPLITS)}, got "
                f"{sizes}. Leave out a split that is not wanted."
            )
        if seed < 0:
            raise ValueError(f"expected `seed` to be at least 0, got {seed}.")
        self.subjects = subjects
        self.seed = seed
        self.sizes = sizes
        self.skipped = self.dropped = Counter()  # no item is bad, none left out
        self.unread_keys = set()
        self.label_names = [subject.label for subject in subjects]
        self.splits = [split for split in SPLITS if split in sizes]

    @property
    def description(self) -> str:
        return f"Scenes of {SIZE} x {SIZE} pixels drawn by code, seed {self.seed}. They are not photographs."

    @property
    def selection(self) -> str:
        return (
            f"{ALIGNED_SHARE:.0%} of a class's training pictures show the background of the class (`group` is "
            "`aligned`), the others another one (`conflicting`); in validation and test all backgrounds are equally "
            f"frequent. Visual explanations are kept for {EXPLAINED_SHARE:.0%} of the training pictures and for all "
            "others."
        )

    def parts(self, split: str, limit: int) -> list[str]:
        """The split alone."""
        return [split]

    def rows(self, split: str, refused: list[dict]) -> Iterator[dict]:
        """Yields the rows of one split; `refused` stays as it is."""
        number = SPLITS.index(split)
        plans = plan_split(self.subjects, self.sizes[split], split, np.random.default_rng([self.seed, number]))
        for index, plan in enumerate(plans):
            yield draw_row(f"{split}_{index:05d}", plan, np.random.default_rng([self.seed, number, index]))


def plan_split(subjects: tuple[Subject, ...], size: int, split: str, rng: np.random.Generator) -> list[Plan]:
    """Decides the class, background and kept explanation of each scene, with exact shares in every class."""
    plans = []
    for position, subject in enumerate(subjects):
        number = len(range(position, size, len(subjects)))
        if split == "train":
            others = [name for name in BACKGROUNDS if name != subject.background]
            conflicting = int(number * (1 - ALIGNED_SHARE) + 0.5)
            explained = int(number * EXPLAINED_SHARE + 0.5)
            backgrounds = [others[i % len(others)] for i in range(conflicting)]
            backgrounds += [subject.background] * (number - conflicting)
        else:
            names = list(BACKGROUNDS)
            explained = number
            backgrounds = [names[(i + position) % len(names)] for i in range(number)]
        keep = rng.permutation(number) < explained
        plans += [Plan(subject, backgrounds[i], bool(keep[i])) for i in range(number)]
    return [plans[i] for i in rng.permutation(len(plans))]


def draw_row(key: str, plan: Plan, rng: np.random.Generator) -> dict:
    """Draws one scene and returns its row."""
    subject = plan.subject
    colour = str(rng.choice(list(COLOURS)))
    place = PLACES[rng.integers(len(PLACES))]
    layer = draw_subject(subject, COLOURS[colour], place, rng)
    picture = compose(BACKGROUNDS[plan.background](rng), layer, rng)
    mask = layer.getchannel("A")
    words = {
        "colour": colour,
        "a_colour": f"an {colour}" if colour[0] in "aeiou" else f"a {colour}",
        "place": place_of(np.asarray(mask)),
    }
    return {
        "id": key,
        "image": {"bytes": encode_png(picture), "path": f"{key}.png"},
        "label": subject.label,
        "visual_explanation": {"bytes": encode_png(mask), "path": f"{key}.png"} if plan.explained else None,
        "textual_explanations": [rationale.format(**words) for rationale in subject.rationales],
        "group": "aligned" if plan.background == subject.background else "conflicting",
    }


def place_of(mask: np.ndarray) -> str:
    """The one of `PLACES` in which the centroid of a mask lies.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): not negative, not all zero; larger is more inside.
    """
    mask = np.asarray(mask, dtype=np.float64)
    height, width = mask.shape
    row = (mask.sum(axis=1) @ (np.arange(height) + 0.5)) / mask.sum() / height
    column = (mask.sum(axis=0) @ (np.arange(width) + 0.5)) / mask.sum() / width
    return PLACES[min(2, int(3 * row)) * 3 + min(2, int(3 * column))]


class Pen:
    """Draws outlined shapes in coordinates of the unit square, x to the right and y down, on a clear ground."""

    SIDE = 512
    OUTLINE = 0.012

    def __init__(self):
        self.image = Image.new("RGBA", (self.SIDE, self.SIDE), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[float, float]], colour: tuple[int, int, int]):
        self.draw.polygon([(x * self.SIDE, y * self.SIDE) for x, y in points], fill=colour)
        self.stroke([*points, points[0]], self.OUTLINE, shade(colour, 0.45))

    def ellipse(self, x: float, y: float, across: float, down: float, colour: tuple[int, int, int]):
        """An ellipse around (x, y) with the radii `across` and `down`."""
        edge = int(self.OUTLINE * self.SIDE)
        box = [(x - across) * self.SIDE, (y - down) * self.SIDE, (x + across) * self.SIDE, (y + down) * self.SIDE]
        self.draw.ellipse(box, fill=colour, outline=shade(colour, 0.45), width=edge)

    def limb(self, points: list[tuple[float, float]], width: float, colour: tuple[int, int, int]):
        """A thick line with round ends and an outline."""
        self.stroke(points, width + 2 * self.OUTLINE, shade(colour, 0.45))
        self.stroke(points, width, colour)

    def stroke(self, points: list[tuple[float, float]], width: float, colour: tuple[int, int, int]):
        """A line with round joints and ends, without an outline."""
        corners = [(x * self.SIDE, y * self.SIDE) for x, y in points]
        radius = width * self.SIDE / 2
        self.draw.line(corners, fill=colour, width=max(1, round(2 * radius)))
        for x, y in corners:
            self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    """A colour made darker (factor below 1) or lighter (above 1)."""
    return tuple(min(255, int(part * factor)) for part in colour)


def draw_subject(subject: Subject, colour: tuple[int, int, int], place: str, rng: np.random.Generator) -> Image.Image:
    """Draws a subject at a place of an otherwise clear picture of `SIZE` x `SIZE`, mode RGBA."""
    pen = Pen()
    subject.draw(pen, tuple(int(part) for part in np.clip(np.add(colour, rng.integers(-12, 13, 3)), 0, 255)), rng)
    tile = pen.image.reduce(2)
    if rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile = tile.rotate(rng.uniform(-subject.tilt, subject.tilt), Image.Resampling.BICUBIC, expand=True)
    tile = tile.crop(tile.getchannel("A").getbbox())

    # The drawn area, unless the subject would then not fit into its third of the picture.
    row, column = divmod(PLACES.index(place), 3)
    filled = np.asarray(tile.getchannel("A")).sum(dtype=np.int64) / 255
    scale = SIZE * np.sqrt(rng.uniform(*subject.area) / filled)
    room = [0.62 if third != 1 else 0.85 for third in (column, row)]
    scale = min(scale, SIZE * room[0] / tile.width, SIZE * room[1] / tile.height)
    tile = tile.resize(
        (max(1, round(tile.width * scale)), max(1, round(tile.height * scale))), Image.Resampling.LANCZOS
    )

    alpha = np.asarray(tile.getchannel("A"), dtype=np.float64)
    layer = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    corner = []
    for third, weights, side in ((column, alpha.sum(axis=0), tile.width), (row, alpha.sum(axis=1), tile.height)):
        centroid = weights @ (np.arange(side) + 0.5) / weights.sum()
        aim = SIZE * (third + rng.uniform(0.12, 0.88)) / 3
        corner.append(int(np.clip(round(aim - centroid), 1, SIZE - side - 1)))
    layer.paste(light(tile), tuple(corner))
    return layer


def light(tile: Image.Image) -> Image.Image:
    """Lightens a subject at the upper left and darkens it at the lower right."""
    values = np.asarray(tile).astype(np.float64)
    down = np.linspace(0.16, -0.16, tile.height)[:, None]
    across = np.linspace(0.06, -0.06, tile.width)[None, :]
    values[..., :3] *= 1 + (down + across)[..., None]
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def compose(background: np.ndarray, layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Puts a subject with a soft shadow on a background.

    Args:
        background (`np.ndarray` of shape `(2 * SIZE, 2 * SIZE, 3)`): on 0..255.
        layer (`Image`): mode RGBA, `SIZE` x `SIZE`.
    """
    background = background * rng.uniform(0.9, 1.08)
    picture = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    pebbles(picture, rng)
    picture = picture.reduce(2)
    shadow = Image.new("L", (SIZE, SIZE), 0)
    shadow.paste(layer.getchannel("A").point(lambda value: value * 0.45), (2, 3))
    picture.paste((12, 14, 28), (0, 0), shadow.filter(ImageFilter.GaussianBlur(2.5)))
    picture.paste(layer.convert("RGB"), (0, 0), layer.getchannel("A"))
    return picture


def pebbles(picture: Image.Image, rng: np.random.Generator):
    """Strews a few small grey stones over a background: clutter that belongs to no class."""
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, 2 * SIZE, 2)
        across, down = rng.uniform(3, 6), rng.uniform(2, 4)
        grey = int(rng.integers(105, 175))
        draw.ellipse([x - across, y - down + 1.5, x + across, y + down + 1.5], fill=(45, 45, 50))
        draw.ellipse([x - across, y - down, x + across, y + down], fill=(grey, grey, grey - 6))
        draw.ellipse([x - across * 0.6, y - down * 0.7, x, y], fill=(grey + 35, grey + 35, grey + 30))


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a background at twice the picture's size, in [0, 1), shapes `(n, 1)` and `(1, n)`."""
    steps = np.arange(2 * SIZE, dtype=np.float32) / (2 * SIZE)
    return steps[:, None], steps[None, :]


def clouds(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in about [-1, 1] of shape `(2 * SIZE, 2 * SIZE)`, with so many cells down and across."""
    cells = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(cells.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC))


def blend(first: tuple, second: tuple, amount: np.ndarray) -> np.ndarray:
    """Goes from the first colour (amount 0) to the second (amount 1); adds the colour axis."""
    amount = np.clip(amount, 0, 1)[..., None]
    return np.float32(first) * (1 - amount) + np.float32(second) * amount


def sea(rng: np.random.Generator) -> np.ndarray:
    """Blue-green waves with bright crests."""
    y, x = grid()
    bend = 0.035 * clouds(rng, 5, 4) + 0.012 * clouds(rng, 14, 9)
    wave = np.sin(2 * np.pi * (rng.uniform(8, 11) * (y + bend) + 0.6 * np.sin(2 * np.pi * (x + rng.random()))))
    water = blend((8, 74, 122), (40, 150, 176), 0.45 + 0.3 * wave + 0.25 * (1 - y) + 0.12 * clouds(rng, 9, 7))
    crest = np.clip((wave - 0.72) * 3.2, 0, 1) * np.clip(0.55 + clouds(rng, 16, 12), 0, 1)
    return water + crest[..., None] * (np.float32([228, 246, 248]) - water) * 0.8


def grass(rng: np.random.Generator) -> np.ndarray:
    """A meadow of blades with a few small flowers."""
    ground = blend((48, 104, 36), (92, 152, 52), 0.5 + 0.45 * clouds(rng, 6, 6))
    meadow = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(meadow)
    blades = 620
    foot = rng.uniform(-10, 2 * SIZE + 20, (blades, 2))
    lean, length = rng.uniform(-6, 6, blades), rng.uniform(9, 24, blades)
    tone = rng.uniform(0, 1, blades)
    for i in np.argsort(foot[:, 1]):
        colour = tuple(int(part) for part in blend((30, 84, 26), (150, 200, 74), tone[i]))
        tip = (foot[i, 0] + lean[i], foot[i, 1] - length[i])
        draw.line([tuple(foot[i]), tip], fill=colour, width=2)
    for _ in range(rng.integers(5, 11)):
        u, v = rng.uniform(0, 2 * SIZE, 2)
        draw.ellipse([u - 3, v - 3, u + 3, v + 3], fill=(246, 246, 238))
        draw.ellipse([u - 1, v - 1, u + 1, v + 1], fill=(240, 196, 60))
    return np.asarray(meadow, dtype=np.float32)


def sand(rng: np.random.Generator) -> np.ndarray:
    """Wind ripples in pale sand, with single grains."""
    y, x = grid()
    turn = rng.uniform(-0.5, 0.5)
    bend = 0.07 * clouds(rng, 4, 4) + 0.015 * clouds(rng, 12, 12)
    ripple = np.sin(2 * np.pi * rng.uniform(11, 14) * (y * np.cos(turn) + x * np.sin(turn) + bend))
    dune = blend((186, 146, 96), (242, 214, 164), 0.55 + 0.26 * ripple + 0.28 * clouds(rng, 4, 5))
    return dune + 9 * rng.standard_normal((*dune.shape[:2], 1), dtype=np.float32)


def brick(rng: np.random.Generator) -> np.ndarray:
    """A brick wall with pale mortar."""
    y, x = grid()
    courses = int(rng.integers(9, 12))
    down = y * courses + rng.random()
    row = np.floor(down).astype(int)
    across = x * courses * 0.46 + 0.5 * (row % 2) + rng.random()
    column = np.floor(across).astype(int)
    tone = rng.uniform(0, 1, (courses + 2, courses + 2))[row, column]
    wall = blend((132, 58, 42), (190, 102, 74), tone + 0.18 * clouds(rng, 30, 30))
    wall += 5 * rng.standard_normal((*wall.shape[:2], 1), dtype=np.float32)
    high, wide = down - row, across - column
    bevel = (1 + 0.12 * (high < 0.3) - 0.12 * (high > 0.85)).astype(np.float32)
    mortar = (high < 0.13) | (wide < 0.06)
    joint = blend((176, 166, 152), (206, 198, 184), 0.5 + 0.5 * clouds(rng, 24, 24))
    return np.where(mortar[..., None], joint, wall * bevel[..., None])


def night(rng: np.random.Generator) -> np.ndarray:
    """A night sky with a band of faint light and small stars."""
    y, x = grid()
    sky = blend((12, 16, 48), (58, 44, 108), y + 0.25 * clouds(rng, 4, 4))
    slope, height = rng.uniform(-0.6, 0.6), rng.uniform(0.3, 0.7)
    band = np.exp(-(((y - height - slope * (x - 0.5)) / 0.16) ** 2)) * (0.6 + 0.4 * clouds(rng, 7, 7))
    sky += band[..., None] * np.float32([46, 66, 92])
    points = Image.new("L", (2 * SIZE, 2 * SIZE), 0)
    draw = ImageDraw.Draw(points)
    for _ in range(170):
        u, v = rng.uniform(0, 2 * SIZE, 2)
        radius = rng.choice([0.6, 1.0, 1.0, 1.8])
        draw.ellipse([u - radius, v - radius, u + radius, v + radius], fill=int(rng.integers(120, 256)))
    glow = np.asarray(points.filter(ImageFilter.GaussianBlur(2.2)), dtype=np.float32) * 1.6
    bright = np.asarray(points, dtype=np.float32)
    return sky + glow[..., None] * np.float32([0.7, 0.8, 1.0]) + bright[..., None] * np.float32([1.0, 0.97, 0.86])


BACKGROUNDS = {"sea": sea, "grass": grass, "sand": sand, "brick": brick, "night": night}
