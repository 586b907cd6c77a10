from .action_me import ActionMe
from .build import LAYOUTS, build_dataset
from .card import counts_table
from .cub import Cub
from .hard_imagenet import HardImageNet
from .hub import HubTarget
from .imagenet_s import ImageNetS
from .object_me import ObjectMe
from .pets import Pets
from .scenes import COLOURS, PLACES, place_of
from .waterbirds import Waterbirds


BUILDERS = {
    "object_me": ObjectMe,
    "action_me": ActionMe,
    "waterbirds": Waterbirds,
    "cub": Cub,
    "pets": Pets,
    "hard_imagenet": HardImageNet,
    "imagenet_s": ImageNetS,
}

__all__ = [
    "BUILDERS",
    "COLOURS",
    "LAYOUTS",
    "PLACES",
    "ActionMe",
    "Cub",
    "HardImageNet",
    "HubTarget",
    "ImageNetS",
    "ObjectMe",
    "Pets",
    "Waterbirds",
    "build_dataset",
    "counts_table",
    "place_of",
]
