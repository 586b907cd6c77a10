"""Makes masks, rationales and labels for a folder of pictures, on a page in the browser.

```
megl annotate pictures --labels fish,house
megl annotate pictures --model megl-trained --name Anna
```

It prints an address to open on this machine, and serves until Ctrl-C. The pictures lie in sub-folders named after
their classes, or anyhow where `--labels` names the classes; a folder with a `metadata.jsonl`, of an earlier time or by
hand, is gone on with. Each save writes `metadata.jsonl` and a mask in `masks/`, which `megl prepare` takes, and enters
who changed what in `annotations.jsonl`. With `--model`, a MEGL model or any image classifier, the pictures that help
it most come first, each with its map and, of a MEGL model, its rationale to begin with.
"""

import getpass
import sys

from megl.annotation.server import AnnotationServer
from megl.annotation.store import Annotations
from megl.annotation.suggestions import Suggestions, load_suggester
from megl.arguments import AnnotateArguments
from megl.parser import parse
from megl.terminal import print_anywhere, program
from modeling_megl.configuration_megl import one_line


def user():
    """The name of who is logged in, or `me`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "me"


def main():
    (arguments,) = parse(__doc__, AnnotateArguments)
    try:
        suggest, class_names = None, []
        if arguments.model:
            suggest, class_names = load_suggester(arguments.model, arguments.trust_remote_code)
        labels = [label.strip() for label in (arguments.labels or "").split(",") if label.strip()]
        with Annotations(arguments.dataset, labels, class_names) as annotations:
            suggestions = Suggestions(annotations, suggest) if suggest else None
            with AnnotationServer(
                annotations, arguments.port, suggestions, class_names, arguments.name or user()
            ) as server:
                if suggestions:
                    suggestions.start()
                print_anywhere(f"{len(annotations):,} pictures. Open {server.address} on this machine; Ctrl-C ends.")
                sys.stdout.flush()
                server.serve_forever()
    except KeyboardInterrupt:
        print()
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")


if __name__ == "__main__":
    main()
