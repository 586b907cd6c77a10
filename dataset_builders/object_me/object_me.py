"""Object-ME: which kind of object a picture shows, where it is, and why it is that kind."""

import numpy as np

from ..build import ExplainedImages
from ..card import CITATION
from ..scenes import Pen, Subject, shade


def draw_house(pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    glass = (255, 232, 150)
    pen.polygon([(0.66, 0.16), (0.76, 0.16), (0.76, 0.42), (0.66, 0.42)], shade(colour, 0.6))
    pen.polygon([(0.17, 0.44), (0.83, 0.44), (0.83, 0.94), (0.17, 0.94)], colour)
    pen.polygon([(0.06, 0.47), (0.5, 0.06), (0.94, 0.47)], shade(colour, 0.68))
    pen.polygon([(0.42, 0.64), (0.58, 0.64), (0.58, 0.94), (0.42, 0.94)], (92, 58, 40))
    for left in (0.23, 0.65):
        pen.polygon([(left, 0.58), (left + 0.12, 0.58), (left + 0.12, 0.72), (left, 0.72)], glass)
        pen.stroke([(left + 0.06, 0.58), (left + 0.06, 0.72)], 0.01, (110, 84, 50))
    pen.ellipse(0.5, 0.32, 0.06, 0.06, glass)


def draw_fish(pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    fin = shade(colour, 0.78)
    pen.polygon([(0.66, 0.5), (0.96, 0.2), (0.89, 0.5), (0.96, 0.8)], fin)
    pen.polygon([(0.3, 0.33), (0.5, 0.1), (0.62, 0.36)], fin)
    pen.polygon([(0.38, 0.66), (0.5, 0.88), (0.58, 0.64)], fin)
    pen.ellipse(0.4, 0.5, 0.36, 0.26, colour)
    for left in (0.4, 0.52, 0.63):
        reach = 0.17 - 0.25 * abs(left - 0.4)
        pen.stroke([(left, 0.5 - reach), (left + 0.03, 0.5), (left, 0.5 + reach)], 0.035, shade(colour, 1.3))
    pen.ellipse(0.2, 0.44, 0.065, 0.065, (250, 250, 250))
    pen.ellipse(0.19, 0.44, 0.03, 0.03, (20, 20, 26))
    pen.stroke([(0.08, 0.57), (0.15, 0.6), (0.21, 0.58)], 0.014, shade(colour, 0.4))


def draw_tree(pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    pen.polygon([(0.42, 0.78), (0.58, 0.78), (0.6, 0.96), (0.4, 0.96)], (112, 74, 44))
    for top, bottom, half in ((0.4, 0.82, 0.4), (0.22, 0.6, 0.32), (0.04, 0.38, 0.23)):
        pen.polygon([(0.5, top), (0.5 + half, bottom), (0.5, bottom + 0.04), (0.5 - half, bottom)], colour)
        pen.polygon([(0.5, top), (0.5 - 0.25 * half, bottom + 0.03), (0.5 - half, bottom)], shade(colour, 1.2))


def draw_car(pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    pen.polygon([(0.2, 0.5), (0.33, 0.27), (0.66, 0.27), (0.8, 0.5)], shade(colour, 0.85))
    pen.polygon([(0.04, 0.56), (0.1, 0.48), (0.9, 0.5), (0.97, 0.58), (0.97, 0.72), (0.04, 0.72)], colour)
    pen.polygon([(0.28, 0.48), (0.36, 0.32), (0.47, 0.32), (0.47, 0.48)], (190, 226, 240))
    pen.polygon([(0.52, 0.48), (0.52, 0.32), (0.63, 0.32), (0.72, 0.48)], (190, 226, 240))
    for middle in (0.26, 0.74):
        pen.ellipse(middle, 0.72, 0.12, 0.12, (40, 40, 46))
        pen.ellipse(middle, 0.72, 0.055, 0.055, (200, 204, 210))
    pen.ellipse(0.93, 0.58, 0.03, 0.03, (255, 244, 190))
    pen.stroke([(0.49, 0.54), (0.49, 0.66)], 0.008, shade(colour, 0.5))


def draw_star(pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 0.46, 0.22)
    corners = 0.5 + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = [tuple(corner) for corner in corners.tolist()]
    pen.polygon(points, colour)
    for tip in range(0, 10, 2):
        facet = [points[tip], points[tip - 1], (0.5, 0.5)]
        pen.draw.polygon([(x * pen.SIDE, y * pen.SIDE) for x, y in facet], fill=shade(colour, 0.8))
    pen.stroke([*points, points[0]], pen.OUTLINE, shade(colour, 0.45))


def subject(label: str, background: str, draw, feature: str, tilt: float) -> Subject:
    """A kind of object, told by one feature of its shape."""
    return Subject(
        label,
        background,
        draw,
        (
            f"There is {{a_colour}} {label} with {feature} at the {{place}} of the picture.",
            f"The {{colour}} {label} at the {{place}} shows that this is a {label}.",
        ),
        tilt=tilt,
    )


class ObjectMe(ExplainedImages):
    """Object-ME: image classification by kind of object, with visual and textual explanations."""

    PRETTY_NAME = "Object-ME"
    SUMMARY = "Pictures labelled with the kind of object they show, with visual and textual explanations of the label."
    CITATION = CITATION
    SUBJECTS = (
        subject("house", "sand", draw_house, "a pointed roof", tilt=6),
        subject("fish", "sea", draw_fish, "a forked tail", tilt=18),
        subject("tree", "grass", draw_tree, "three layers of branches", tilt=6),
        subject("car", "brick", draw_car, "two round wheels", tilt=8),
        subject("star", "night", draw_star, "five points", tilt=30),
    )
