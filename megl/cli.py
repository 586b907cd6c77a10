"""`megl COMMAND`: the programs of `scripts/`."""

import sys
from importlib import import_module


# Command to its program in `scripts/` and what it does.
COMMANDS = {
    "prepare": ("prepare_dataset", "make a data set of a source: own folders, COCO, Object-ME, Action-ME, a sample"),
    "inspect": ("inspect_dataset", "show what a data set holds and warn of what is wrong with it"),
    "init": ("init_megl", "make an untrained MEGL model of a vision model and a language model"),
    "train": ("train_megl", "train it on labels, masks and rationales, as far as there are any"),
    "evaluate": ("evaluate_megl", "score labels, maps and rationales on a split, with a report"),
    "compare-evaluations": ("compare_evaluations", "test evaluations of several models against the first"),
    "explain": ("explain", "explain pictures: label, map and rationale"),
}


def usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: megl COMMAND [OPTION …]", "", *lines, "", "megl COMMAND --help tells a command's options."]
    )


def main():
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    name = command.replace("_", "-")
    if name not in COMMANDS:
        sys.exit(f"megl: expected a command, one of {', '.join(COMMANDS)}, got {command!r}.")
    sys.argv = [f"megl {name}", *arguments]
    import_module(f"megl.scripts.{COMMANDS[name][0]}").main()
