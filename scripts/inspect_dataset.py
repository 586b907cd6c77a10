"""Shows what is in a data set that `megl prepare` wrote: one self-contained HTML page, and warnings.

```
megl inspect object_me --output object_me.html
megl inspect object_me --output object_me.html --json --overwrite
```

The page has the balance of the classes, the coverage by maps (visual explanations) and rationales (textual
explanations), the maps' sizes and positions, the rationales' lengths and examples. The warnings, printed as well, name
the first few items that are empty, unreadable, duplicate, unlabelled or missing. `--json` writes the figures and
warnings to a `.json` file beside the page. The data set is read once, straight from its Parquet files: what is kept of
a picture are two checksums.
"""

import json
import os
import sys
from pathlib import Path

from dataset_builders.files import check_new_file, write_file
from dataset_builders.items import folder_name, printable
from megl.arguments import InspectArguments
from megl.inspection import inspect, open_dataset, table, warning_lines
from megl.pages.inspection import page
from megl.parser import parse
from megl.terminal import program


def output_files(arguments):
    """The page's path and, where it is asked for, that of the JSON file; each new unless `--overwrite`."""
    page_path = Path(arguments.output)
    if page_path.suffix != ".html":
        raise ValueError(f"expected `--output` to be a file name that ends in .html, got {arguments.output}.")
    folder = next(folder for folder in page_path.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"expected `--output` in a folder that can be written, got {folder}. Give another one.")
    paths = [page_path, page_path.with_suffix(".json")] if arguments.json else [page_path]
    return [check_new_file(path, arguments.overwrite) for path in paths]


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of an item's name
    (arguments,) = parse(__doc__, InspectArguments)
    try:
        paths = output_files(arguments)
        inspection = inspect(*open_dataset(arguments.dataset), arguments.examples)
        summary = {"dataset": folder_name(Path(arguments.dataset)), **inspection.summary()}
        contents = [page(summary, inspection), json.dumps(summary, indent=2, ensure_ascii=False) + "\n"]
        for path, content in zip(paths, contents, strict=False):
            write_file(path, content)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {printable(str(error))}")
    print(table(summary))
    print(warning_lines(summary))
    print(f"page: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
