"""Where the modules of `metrics/` lie: beside the package in a checkout, in it once it is installed."""

from importlib.util import find_spec
from pathlib import Path

import evaluate


def metric_path(name):
    """The folder of a module, as `evaluate.load` takes it."""
    (folder,) = find_spec("megl.metrics").submodule_search_locations
    return str(Path(folder) / name)


def load(name, **options):
    return evaluate.load(metric_path(name), **options)
