from .action_me import ActionMe
from .build import LAYOUTS, build_dataset
from .card import counts_table
from .hub import HubTarget
from .object_me import ObjectMe
from .scenes import COLOURS, PLACES, place_of


BUILDERS = {"object_me": ObjectMe, "action_me": ActionMe}

__all__ = [
    "BUILDERS",
    "COLOURS",
    "LAYOUTS",
    "PLACES",
    "ActionMe",
    "HubTarget",
    "ObjectMe",
    "build_dataset",
    "counts_table",
    "place_of",
]
