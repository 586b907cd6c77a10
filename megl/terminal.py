"""Texts on terminals that know few characters."""

import sys


def print_anywhere(text):
    """`print`, with an escape in place of a character that the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
