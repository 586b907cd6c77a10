"""`megl COMMAND`: the programs of `scripts/`."""

import ast
import difflib
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from megl.terminal import interrupted


# Command to its program in `scripts/`, the extra of setup.cfg that has what it needs, and what it does.
COMMANDS = {
    "annotate": ("annotate", "evaluate", "draw masks and write rationales for a folder of pictures, in the browser"),
    "prepare": ("prepare_dataset", "train", "make a data set of a source: own folders, COCO, Object-ME, a sample"),
    "inspect": ("inspect_dataset", "evaluate", "show what a data set holds and warn of what is wrong with it"),
    "init": ("init_megl", "train", "make an untrained MEGL model of a vision model and a language model"),
    "train": ("train_megl", "train", "train it on labels, masks and rationales, as far as there are any"),
    "audit": ("audit", "evaluate", "tell whether any image classifier decides by the object or by the background"),
    "evaluate": ("evaluate_megl", "evaluate", "score labels, maps and rationales on a split, with a report"),
    "compare-evaluations": ("compare_evaluations", "evaluate", "test evaluations of several models against the first"),
    "push": ("push", "evaluate", "upload a trained model to the Hub: what it needs, and nothing else"),
    "export": ("export", "export", "write label and map as one graph, for ONNX Runtime or torch.export"),
    "explain": ("explain", "evaluate", "explain pictures: label, map and rationale"),
    "demo": ("demo", "app", "show a model on a page in the browser, or write the page as a Space of the Hub"),
}


def usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: megl COMMAND [OPTION ...]", "", *lines, "", "megl COMMAND --help tells a command's options."]
    )


def refuse(command):
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(COMMANDS)}."
    print(f"megl: unknown command `{command}`: {hint}", file=sys.stderr)
    sys.exit(2)


def show_help(script):
    """
    Show a program's help and end, without importing it, as that takes seconds; return where some of its options are
    another package's.
    """
    from megl import arguments
    from megl.parser import parse

    tree = ast.parse(Path(find_spec(f"megl.scripts.{script}").origin).read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    _, *kinds = next(call for call in calls if getattr(call.func, "id", None) == "parse").args
    if all(hasattr(arguments, kind.id) for kind in kinds):
        parse(ast.get_docstring(tree), *(getattr(arguments, kind.id) for kind in kinds))


def main():
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    name = command.replace("_", "-")
    if name not in COMMANDS:
        refuse(command)
    sys.argv = [f"megl {name}", *arguments]
    # Before torch is imported, which reads it: threads that wait in a loop take the cores from whom they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    script, extra, _ = COMMANDS[name]
    try:
        if arguments in (["-h"], ["--help"]):
            show_help(script)
        import_module(f"megl.scripts.{script}").main()
    except ModuleNotFoundError as error:
        if error.name == "megl.scripts":
            sys.exit(f"megl {name}: this is a checkout that is not installed: pip install -e '.[{extra}]' in it.")
        missing = error.name or getattr(error.__cause__, "name", None) or "a package"
        sys.exit(f"megl {name}: `{missing}` is not installed: pip install 'megl[{extra}]'")
    except KeyboardInterrupt:
        interrupted("what it had begun to write is not kept.")
