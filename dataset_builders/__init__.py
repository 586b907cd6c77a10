from .action_me import ActionMe
from .build import build_dataset, counts_table
from .object_me import ObjectMe
from .scenes import PLACES, place_of


BUILDERS = {"object_me": ObjectMe, "action_me": ActionMe}

__all__ = ["BUILDERS", "PLACES", "ActionMe", "ObjectMe", "build_dataset", "counts_table", "place_of"]
