"""Uploads a trained model to the Hub: what its repository needs, and nothing else.

```
megl push megl-trained me/birds --dry_run
megl push megl-trained me/birds --license mit --dataset_id me/bird-pictures
```

Weights, settings, code, processor, card and licence go; optimizer states, pickles and what else lies in the folder
stay. The repository is private unless `--public` says otherwise; a public one is not written without it, and a
private one that is there stays so. Weights of an earlier upload that the model no longer has are removed. Log in
first, by `hf auth login` or HF_TOKEN.
"""

import sys

from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

from dataset_builders import HubTarget
from megl.arguments import PushArguments
from megl.parser import parse
from megl.publishing import is_weights, model_card, model_files
from megl.terminal import print_anywhere, program


def main():
    (arguments,) = parse(__doc__, PushArguments)
    try:
        validate_repo_id(arguments.repository)
        files = model_files(arguments.model)
        card = model_card(arguments.model, arguments.license, arguments.dataset_id)
        target = None
        if not arguments.dry_run:
            target = HubTarget(arguments.repository, private=not arguments.public, repo_type="model")
        for name, path in files.items():
            print_anywhere(f"{path.stat().st_size / 1e6:10.3f} MB  {name}")
        if target is not None:
            contents = {**files, "README.md": card.encode()}
            print(target.commit(contents, is_weights, "Upload the model"))
            if target.note:
                print(target.note)
    except (ValueError, OSError, HTTPError) as error:
        sys.exit(f"{program()}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
