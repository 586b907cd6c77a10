"""Builds Object-ME or Action-ME as a folder of Parquet and a card, which `load_dataset` loads.

```
python scripts/prepare_dataset.py object_me --source sample --output object_me
python scripts/prepare_dataset.py action_me --source sample --output action_me --seed 1
python scripts/prepare_dataset.py object_me --source path/to/release --output object_me --overwrite
```
"""

import argparse
import sys

from dataset_builders import BUILDERS, build_dataset, counts_table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builder", choices=sorted(BUILDERS), help="the data set to build")
    parser.add_argument("--source", required=True, help="folder in the authors' release layout, or the word `sample`")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample, or the split of a release without one")
    parser.add_argument("--validation_share", type=float, default=0.1, help="share of each class in a drawn split")
    parser.add_argument("--test_share", type=float, default=0.2, help="share of each class in a drawn split")
    parser.add_argument("--license", help="licence to name in the card")
    parser.add_argument("--overwrite", action="store_true", help="replace all that is in the output folder")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    try:
        counts = build_dataset(
            BUILDERS[arguments.builder],
            arguments.source,
            arguments.output,
            seed=arguments.seed,
            validation_share=arguments.validation_share,
            test_share=arguments.test_share,
            overwrite=arguments.overwrite,
            license=arguments.license,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_dataset: {error}")
    print(f"{arguments.output}: pictures, and visual explanations in brackets")
    print(counts_table(counts))


if __name__ == "__main__":
    main()
