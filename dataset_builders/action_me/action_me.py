"""Action-ME: what a person in a picture is doing, where, and how one can tell."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..build import ExplainedImages
from ..card import CITATION
from ..scenes import Pen, Subject, shade


SKINS = ((238, 194, 160), (222, 168, 126), (188, 130, 90), (132, 86, 58), (92, 60, 44))
HAIRS = ((40, 30, 26), (92, 58, 34), (176, 128, 62), (70, 70, 76))
TROUSERS = ((52, 60, 84), (84, 74, 66), (58, 58, 60), (110, 116, 124))


@dataclass(frozen=True)
class Pose:
    """The joints of a person who faces right, on the unit square; limbs run from the body outwards.

    Each arm is (elbow, hand), each leg (knee, foot); the far limb is drawn behind the body. `things` are drawn first.
    """

    head: tuple[float, float]
    neck: tuple[float, float]
    hip: tuple[float, float]
    far_arm: tuple
    near_arm: tuple
    far_leg: tuple
    near_leg: tuple
    things: tuple = field(default=())


RUNNING = Pose(
    head=(0.6, 0.13),
    neck=(0.56, 0.28),
    hip=(0.47, 0.55),
    far_arm=((0.7, 0.42), (0.82, 0.3)),
    near_arm=((0.36, 0.38), (0.3, 0.54)),
    far_leg=((0.33, 0.72), (0.1, 0.76)),
    near_leg=((0.68, 0.64), (0.62, 0.9)),
)
WAVING = Pose(
    head=(0.5, 0.15),
    neck=(0.5, 0.3),
    hip=(0.5, 0.58),
    far_arm=((0.36, 0.44), (0.34, 0.6)),
    near_arm=((0.7, 0.32), (0.78, 0.08)),
    far_leg=((0.43, 0.76), (0.41, 0.93)),
    near_leg=((0.57, 0.76), (0.59, 0.93)),
)
SITTING = Pose(
    head=(0.4, 0.15),
    neck=(0.38, 0.3),
    hip=(0.36, 0.6),
    far_arm=((0.5, 0.46), (0.66, 0.5)),
    near_arm=((0.44, 0.48), (0.6, 0.54)),
    far_leg=((0.7, 0.58), (0.74, 0.88)),
    near_leg=((0.64, 0.62), (0.64, 0.92)),
    things=(("stool", (0.14, 0.66), (0.52, 0.95)),),
)
LIFTING = Pose(
    head=(0.5, 0.24),
    neck=(0.5, 0.38),
    hip=(0.5, 0.63),
    far_arm=((0.32, 0.32), (0.34, 0.1)),
    near_arm=((0.68, 0.32), (0.66, 0.1)),
    far_leg=((0.38, 0.78), (0.36, 0.94)),
    near_leg=((0.62, 0.78), (0.64, 0.94)),
    things=(("bar", (0.08, 0.1), (0.92, 0.1)),),
)
KICKING = Pose(
    head=(0.32, 0.14),
    neck=(0.34, 0.29),
    hip=(0.4, 0.56),
    far_arm=((0.5, 0.38), (0.62, 0.3)),
    near_arm=((0.2, 0.4), (0.1, 0.28)),
    far_leg=((0.38, 0.76), (0.34, 0.94)),
    near_leg=((0.6, 0.6), (0.8, 0.46)),
    things=(("ball", (0.91, 0.33), (0.08, 0.08)),),
)


def draw_person(pose: Pose, pen: Pen, colour: tuple[int, int, int], rng: np.random.Generator):
    """Draws a person in a shirt of the given colour, joints moved a little at random."""

    def near(point):
        return tuple(float(part) for part in np.add(point, rng.uniform(-0.015, 0.015, 2)))

    skin = SKINS[rng.integers(len(SKINS))]
    hair = HAIRS[rng.integers(len(HAIRS))]
    trousers = TROUSERS[rng.integers(len(TROUSERS))]
    for thing in pose.things:
        draw_thing(pen, *thing)
    draw_arm(pen, pose.neck, [near(joint) for joint in pose.far_arm], shade(colour, 0.8), shade(skin, 0.85))
    draw_leg(pen, pose.hip, [near(joint) for joint in pose.far_leg], shade(trousers, 0.75))
    draw_leg(pen, pose.hip, [near(joint) for joint in pose.near_leg], trousers)
    shoulder = (pose.neck[0], pose.neck[1] + 0.05)
    pen.limb([pose.neck, pose.head], 0.07, skin)
    pen.limb([shoulder, pose.hip], 0.19, colour)
    x, y = pose.head
    pen.ellipse(x - 0.015, y - 0.02, 0.115, 0.115, hair)
    pen.ellipse(x + 0.015, y + 0.015, 0.095, 0.095, skin)
    pen.ellipse(x + 0.06, y + 0.005, 0.012, 0.018, (30, 26, 26))
    draw_arm(pen, pose.neck, [near(joint) for joint in pose.near_arm], shade(colour, 1.08), skin)


def draw_arm(pen: Pen, neck: tuple, joints: list, sleeve: tuple, skin: tuple):
    """An arm: the sleeve to the elbow, the bare forearm, the hand."""
    shoulder = (neck[0], neck[1] + 0.04)
    elbow, hand = joints
    pen.limb([elbow, hand], 0.085, skin)
    pen.limb([shoulder, elbow], 0.105, sleeve)
    pen.ellipse(*hand, 0.056, 0.056, skin)


def draw_leg(pen: Pen, hip: tuple, joints: list, trousers: tuple):
    """A leg with a shoe that points right."""
    knee, foot = joints
    pen.limb([foot, (foot[0] + 0.06, foot[1] + 0.005)], 0.085, (236, 236, 240))
    pen.limb([hip, knee, foot], 0.125, trousers)


def draw_thing(pen: Pen, name: str, place: tuple, other: tuple):
    """What the action needs: a stool between two corners, a bar between two ends, a ball with a middle and radii."""
    if name == "stool":
        (left, top), (right, bottom) = place, other
        for x in (left + 0.06, right - 0.06):
            pen.limb([(x, top), (x, bottom)], 0.05, (124, 82, 48))
        pen.limb([(left, top + 0.03), (right, top + 0.03)], 0.07, (164, 112, 66))
    elif name == "bar":
        pen.limb([place, other], 0.035, (176, 182, 190))
        for x, inward in ((place[0], 0.06), (other[0], -0.06)):
            pen.limb([(x, place[1] - 0.07), (x, place[1] + 0.07)], 0.05, (70, 74, 84))
            pen.limb([(x + inward, place[1] - 0.05), (x + inward, place[1] + 0.05)], 0.045, (96, 100, 112))
    else:
        pen.ellipse(*place, *other, (248, 248, 248))
        pen.ellipse(place[0], place[1], 0.03, 0.03, (40, 40, 46))


def subject(label: str, background: str, pose: Pose, verb: str, sign: str) -> Subject:
    """An action, told by what the body does."""
    return Subject(
        label,
        background,
        partial(draw_person, pose),
        (
            f"A person in {{a_colour}} shirt {verb} at the {{place}} of the picture.",
            f"The person in the {{colour}} shirt at the {{place}} shows {label}, because {sign}.",
        ),
        area=(0.08, 0.16),
        tilt=4,
    )


class ActionMe(ExplainedImages):
    """Action-ME: image classification by what a person does, with visual and textual explanations."""

    PRETTY_NAME = "Action-ME"
    SUMMARY = "Pictures labelled with the action that a person performs, with visual and textual explanations of it."
    CITATION = CITATION
    SUBJECTS = (
        subject("running", "sand", RUNNING, "runs with long strides", "one leg swings far behind the other"),
        subject("waving", "sea", WAVING, "waves with a raised hand", "one hand is raised beside the head"),
        subject("sitting", "brick", SITTING, "sits on a stool", "the knees are bent over a stool"),
        subject("lifting", "night", LIFTING, "lifts a bar above the head", "both hands hold a bar up"),
        subject("kicking", "grass", KICKING, "kicks a ball", "one leg is stretched towards a ball"),
    )
