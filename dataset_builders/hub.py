"""A built data set to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError


class HubTarget:
    """A data set repository that may be written, as is found out before hours of building.

    Args:
        repository (`str`): its name, as in `"me/object_me"`.
        private (`bool`, defaults to `True`): whether nobody else may see it.

    Raises:
        `ValueError`: if there is no token, or if the repository exists and is public but should not be.
    """

    def __init__(self, repository: str, private: bool = True):
        if get_token() is None:
            raise ValueError(
                f"expected a token of the Hub, to push to {repository}, got none. Run `hf auth login` or set HF_TOKEN."
            )
        self.api = HfApi()
        self.repository = repository
        self.private = private
        try:
            found = self.api.repo_info(repository, repo_type="dataset")
        except RepositoryNotFoundError:
            return
        if private and not found.private:
            raise ValueError(
                f"expected {repository} to be new or private, got a public data set. Make it private, name another "
                "one, or pass `--public`."
            )

    def push(self, folder: str | Path) -> str:
        """Uploads a built folder in one commit that also removes the shards of an earlier build. Returns the URL."""
        url = self.api.create_repo(self.repository, repo_type="dataset", private=self.private, exist_ok=True)
        self.api.upload_folder(
            repo_id=self.repository,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message="Upload the data set",
            delete_patterns=["data/*", "skipped.jsonl"],
        )
        return str(url)
