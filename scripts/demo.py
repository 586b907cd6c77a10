"""Shows a MEGL model on a page in the browser: its label, map and rationale for any picture.

```
megl demo megl-trained --examples object_me
megl demo megl-trained --beside megl-plain --examples my-pictures
megl demo megl-trained --examples object_me --space my-space
```

It prints an address to open on this machine, and serves until Ctrl-C. Upload a picture or choose an example; click on
another class for its map and rationale, or name a class that it is contrasted with; see what becomes of the label
where what the map shows is pasted on another background. With `--beside` two models answer beside each other. Nothing
is listened to from outside of this machine unless `--host` says so, and uploads are deleted at the end.

With `--space` nothing is served: the same page is written as a folder that is a Space of the Hub, models, examples and
requirements included. A Space runs the code that lies with the model.
"""

import os
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from dataset_builders.files import check_new, new_folder
from megl.arguments import DemoArguments
from megl.demo.guard import is_own
from megl.demo.space import load_explainer, write_examples, write_space
from megl.parser import parse
from megl.terminal import print_anywhere, program
from modeling_megl.configuration_megl import one_line


def serve(arguments, explainers, examples):
    """Serve the page until Ctrl-C."""
    from megl.demo.page import build_page, launch

    page = build_page(explainers, examples)
    host, port = arguments.host, arguments.port or None
    try:
        launch(page, host, server_port=port, prevent_thread_lock=True)
    except OSError as error:
        raise ValueError(
            f"cannot listen on port {port or '7860 to 7959'} of {host}: it is in use, or no address of this machine. "
            "Choose another `--port`, or `--host`."
        ) from error
    print_anywhere(f"Open {page.local_url} on this machine; Ctrl-C ends.")
    if not is_own(host):
        print_anywhere(f"Listens on {host}: everybody who can reach that can use the page, without a password.")
    sys.stdout.flush()
    page.block_thread()


def end_in_order():
    """Let a kill, or a terminal that closes, end as Ctrl-C does: uploads are deleted."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores the second
            signal.signal(number, signal.default_int_handler)


def main():
    (arguments,) = parse(__doc__, DemoArguments)
    import_module("megl.demo.page")  # which needs Gradio
    names = [arguments.model, *([arguments.beside] if arguments.beside else [])]
    try:
        if arguments.space:
            check_new(arguments.space)
        explainers = [load_explainer(name, arguments.trust_remote_code) for name in names]
        end_in_order()
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["GRADIO_TEMP_DIR"] = scratch  # of uploads, too
            examples = []
            if arguments.examples:
                (Path(scratch) / "examples").mkdir()
                examples = write_examples(arguments.examples, Path(scratch) / "examples", explainers[0])
            if not arguments.space:
                serve(arguments, explainers, examples)
                return
            with new_folder(arguments.space) as folder:
                write_space(folder, names, explainers, examples)
            print_anywhere(f"{arguments.space} is a Space: hf upload me/space {arguments.space} --repo-type space")
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")


if __name__ == "__main__":
    main()
