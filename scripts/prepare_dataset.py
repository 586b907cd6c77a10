"""Builds Object-ME, Action-ME or a published data set as a folder of Parquet and a card, which `load_dataset` loads.

```
megl prepare object_me --source sample --output object_me
megl prepare object_me --source path/to/release --output object_me --overwrite
megl prepare action_me --source ACT-X --images mpii/images --output action_me --num_proc 4
megl prepare object_me --source birds --output birds_me --name "Birds of our garden" --language de
megl prepare object_me --source own --output own_me --on_error skip --push_to_hub me/own_me
megl prepare waterbirds --source waterbird_complete95_forest2water2 --masks segmentations --output waterbirds
megl prepare cub --source birds --validation_share 0.1 --output cub
megl prepare hard_imagenet --source hardImageNet --images ILSVRC2012 --output hard_imagenet
```
"""

import sys
from dataclasses import asdict

from huggingface_hub.errors import HTTPError

from dataset_builders import BUILDERS, HubTarget, counts_table
from dataset_builders.build import ExplainedImages, build_folder
from dataset_builders.card import CardText, left_out
from dataset_builders.items import as_text, printable, similar_names
from megl.arguments import PrepareArguments
from megl.parser import parse
from megl.terminal import program


def card_text(language, **lines) -> CardText:
    """What the user says in the card, as text whatever the bytes of the command line are."""
    lines = {name: line and as_text(line) for name, line in lines.items()}
    return CardText(language=language and [as_text(code) for code in language], **lines)


def print_notes(builder: ExplainedImages):
    """What may be a slip, though nothing is wrong: labels that look alike and keys that no column is made of."""
    for names in similar_names(builder.info.features["label"].names):
        print(printable(f"Classes that differ in case, blanks or the form of their letters alone: {names}"))
    if builder.source.unread_keys:
        print(printable(f"Keys that are not read: {', '.join(sorted(builder.source.unread_keys))}"))


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a class's name
    (arguments,) = parse(__doc__, PrepareArguments)
    options = asdict(arguments)
    builder_class, output = BUILDERS[options.pop("builder")], options["output"]
    repository, public = options.pop("push_to_hub"), options.pop("public")
    try:
        text = card_text(**{name: options.pop(name) for name in ("license", "name", "language", "description")})
        target = HubTarget(repository, private=not public) if repository else None
        builder = build_folder(builder_class, text=text, **options)
        print(f"{printable(as_text(output))}: pictures (of these, with a visual explanation; number of rationales)")
        print(counts_table(builder.counts))
        print(left_out(builder.source.dropped, builder.source.skipped))
        print_notes(builder)
        if target is not None:
            print(target.push(output))
            if target.note:
                print(target.note)
    except (ValueError, OSError, HTTPError) as error:
        sys.exit(f"{program()}: {printable(str(error))}")


if __name__ == "__main__":
    main()
