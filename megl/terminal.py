"""Programs on terminals: their name, their end by Ctrl-C, and texts where few characters are known."""

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
