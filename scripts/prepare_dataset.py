"""Builds Object-ME or Action-ME as a folder of Parquet and a card, which `load_dataset` loads.

```
python scripts/prepare_dataset.py object_me --source sample --output object_me
python scripts/prepare_dataset.py object_me --source path/to/release --output object_me --overwrite
python scripts/prepare_dataset.py action_me --source ACT-X --images mpii/images --output action_me --num_proc 4
python scripts/prepare_dataset.py object_me --source own --output own_me --on_error skip --push_to_hub me/own_me
```

Words of an option may be joined by hyphens as well: `--on-error skip`.
"""

import argparse
import sys

from dataset_builders import BUILDERS, LAYOUTS, HubTarget, build_dataset, counts_table


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
    parser.add_argument("--license", help="licence to name in the card")
    parser.add_argument("--overwrite", action="store_true", help="replace all that is in the output folder")
    parser.add_argument(
        "--push_to_hub", metavar="REPOSITORY", help="upload to this data set repository, private if new"
    )
    parser.add_argument("--public", action="store_true", help="let the repository be public")
    return parser.parse_args([with_underscores(argument) for argument in sys.argv[1:]])


def with_underscores(argument: str) -> str:
    """`--on-error=skip` as `--on_error=skip`; what is no option stays."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def main():
    options = vars(parse_arguments())
    builder, output = BUILDERS[options.pop("builder")], options["output"]
    repository, public = options.pop("push_to_hub"), options.pop("public")
    try:
        target = HubTarget(repository, private=not public) if repository else None
        counts = build_dataset(builder, **options)
        print(f"{output}: pictures, and visual explanations and rationales in brackets")
        print(counts_table(counts))
        if target is not None:
            print(target.push(output))
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_dataset: {error}")


if __name__ == "__main__":
    main()
