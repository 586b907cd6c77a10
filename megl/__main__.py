"""`python -m megl COMMAND`."""

from megl.cli import main


main()
