"""Programs on terminals: their name, and texts where few characters are known."""

import os
import sys


def program():
    """The program as its user called it: `megl train`, or `train_megl` for `scripts/train_megl.py`."""
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def print_anywhere(text):
    """`print`, with an escape in place of a character that the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
