"""What users read: errors on one line, and texts on terminals that know few characters."""

import sys


def one_line(error):
    """The first line of an error, which says what is wrong; libraries add more."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def print_anywhere(text):
    """`print`, with an escape in place of a character that the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
