"""Builds Object-ME or Action-ME as a folder of Parquet and a card, which `load_dataset` loads.

```
python scripts/prepare_dataset.py object_me --source sample --output object_me
python scripts/prepare_dataset.py object_me --source path/to/release --output object_me --overwrite
python scripts/prepare_dataset.py action_me --source ACT-X --images mpii/images --output action_me --num_proc 4
python scripts/prepare_dataset.py object_me --source birds --output birds_me --name "Birds of our garden" --language de
python scripts/prepare_dataset.py object_me --source own --output own_me --on_error skip --push_to_hub me/own_me
```

Words of an option may be joined by hyphens as well: `--on-error skip`.
"""

import argparse
import sys

from huggingface_hub.errors import HTTPError

from dataset_builders import BUILDERS, LAYOUTS, HubTarget, counts_table
from dataset_builders.build import ExplainedImages, build_folder
from dataset_builders.card import CardText, left_out
from dataset_builders.items import as_text, printable, similar_names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builder", choices=sorted(BUILDERS), help="the data set to build")
    parser.add_argument("--source", required=True, help="folder in one of the layouts, or the word `sample`")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--layout", choices=LAYOUTS, help="the source's layout; told from its files by default")
    parser.add_argument("--images", help="folder of the pictures, where they are not in the source folder")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample, or the split of a source without one")
    parser.add_argument("--validation_share", type=float, default=0.1, help="share of each class in a drawn split")
    parser.add_argument("--test_share", type=float, default=0.2, help="share of each class in a drawn split")
    parser.add_argument(
        "--activity_level", choices=["full", "first"], help="ACT-X: all of an answer, or its first part"
    )
    parser.add_argument("--explain_category", action="store_true", help="COCO: the label's masks explain it")
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="what to do about a bad item")
    parser.add_argument("--num_proc", type=int, default=1, help="processes, each of which writes files of its own")
    parser.add_argument("--max_shard_size", default="200MB", help="of a Parquet file")
    parser.add_argument(
        "--name", type=as_text, help="the data set's name in the card; of own pictures, that of their folder"
    )
    parser.add_argument(
        "--language", nargs="+", type=as_text, help="ISO 639 codes of the rationales' languages, for the card"
    )
    parser.add_argument("--description", type=as_text, help="what the pictures show, for the card")
    parser.add_argument("--license", type=as_text, help="licence to name in the card")
    parser.add_argument("--overwrite", action="store_true", help="replace all that is in the output folder")
    parser.add_argument(
        "--push_to_hub", metavar="REPOSITORY", help="upload to this data set repository, private if new"
    )
    parser.add_argument("--public", action="store_true", help="let the repository be public")
    arguments = parser.parse_args([with_underscores(argument) for argument in sys.argv[1:]])
    if arguments.public and not arguments.push_to_hub:
        parser.error("--public says who may see what --push_to_hub uploads, which is not asked for")
    return arguments


def with_underscores(argument: str) -> str:
    """`--on-error=skip` as `--on_error=skip`; what is no option stays."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def print_notes(builder: ExplainedImages):
    """What may be a slip, though nothing is wrong: labels that look alike and keys that no column is made of."""
    for names in similar_names(builder.info.features["label"].names):
        print(printable(f"Classes that differ in case, blanks or the form of their letters alone: {names}"))
    if builder.source.unread_keys:
        print(printable(f"Keys that are not read: {', '.join(sorted(builder.source.unread_keys))}"))


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a class's name
    options = vars(parse_arguments())
    builder_class, output = BUILDERS[options.pop("builder")], options["output"]
    repository, public = options.pop("push_to_hub"), options.pop("public")
    try:
        text = CardText(**{name: options.pop(name) for name in ("license", "name", "language", "description")})
        target = HubTarget(repository, private=not public) if repository else None
        builder = build_folder(builder_class, text=text, **options)
        print(f"{printable(as_text(output))}: pictures (of these, with a visual explanation; number of rationales)")
        print(counts_table(builder.counts))
        print(left_out(builder.source.dropped, builder.source.skipped))
        print_notes(builder)
        if target is not None:
            print(target.push(output))
    except (ValueError, OSError, HTTPError) as error:
        sys.exit(f"prepare_dataset: {printable(str(error))}")


if __name__ == "__main__":
    main()
