"""Programs on terminals: their name, their end by Ctrl-C, bars of progress, and texts where letters are missing."""

import os
import signal
import sys
from contextlib import contextmanager


INTERRUPTED = 128 + signal.SIGINT  # the exit status that shells expect


def program():
    """The program as its user called it: `megl train`, or `train_megl` for `scripts/train_megl.py`."""
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def print_anywhere(text):
    """`print`, with an escape in place of a character that the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def progress(steps=None, description=None, shown=True, **settings):
    """
    A bar of `tqdm` on standard error; none where that is no terminal, or where HF_DATASETS_DISABLE_PROGRESS_BARS is
    set.

    Args:
        steps (*optional*): What is gone through; without, `total` and `update` say how far it is.
        description (`str`, *optional*): What the bar is called.
        shown (`bool`): Whether this process shows one.
        settings: As in `tqdm`.
    """
    from datasets.utils import tqdm  # which `megl --help` need not wait for

    return tqdm(steps, desc=description, disable=None if shown else True, **settings)


def interrupted(kept):
    """End the program that Ctrl-C was pressed in, with one line that says what is kept."""
    end_of_bar = "\n" if sys.stderr.isatty() else ""
    print(f"{end_of_bar}{program()}: interrupted: {kept}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def interrupted_writing(output):
    """The same of a program that writes a folder whole or not at all."""
    there = os.path.isdir(output) and os.listdir(output)
    interrupted(f"{output} is whole." if there else "nothing is written.")


@contextmanager
def uninterrupted():
    """Ctrl-C takes effect when the block ends: what it writes is whole."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
