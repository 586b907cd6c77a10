"""Folders to the Hub."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError


class HubTarget:
    """A repository that may be written, as is found out before hours of work.

    Args:
        repository (`str`): its name, as in `"me/object_me"`; without an owner, the user's own.
        private (`bool`, defaults to `True`): whether nobody else may see it.
        repo_type (`str`, defaults to `"dataset"`): `"dataset"` or `"model"`.

    Raises:
        `ValueError`: if there is no token, or if the repository exists and is public but should not be.

    Attributes:
        note (`str` or `None`): that the repository exists and is private, where it may be public: what it holds
            already is not opened unasked.
    """

    def __init__(self, repository: str, private: bool = True, repo_type: str = "dataset"):
        if get_token() is None:
            raise ValueError(
                f"expected a token of the Hub, to push to {repository}, got none. Run `hf auth login` or set HF_TOKEN."
            )
        self.api = HfApi()
        # As the Hub names it: else a public one of the user's would not be found.
        self.repository = repository if "/" in repository else f"{self.api.whoami()['name']}/{repository}"
        self.private = private
        self.repo_type = repo_type
        self.note = None
        try:
            found = self.api.repo_info(self.repository, repo_type=repo_type)
        except RepositoryNotFoundError:
            return
        if not private and found.private:
            self.note = (
                f"{self.repository} stays private, as it was, with all that it holds: `hf repos settings "
                f"{self.repository} --type {repo_type} --public` opens it."
            )
        if private and not found.private:
            raise ValueError(
                f"expected {self.repository} to be new or private, got a public {repo_type}. Make it private, name "
                "another one, or pass `--public`."
            )

    def push(self, folder: str | Path) -> str:
        """Uploads a built folder in one commit that also removes the shards of an earlier build. Returns the URL."""
        url = self._create()
        self.api.upload_folder(
            repo_id=self.repository,
            repo_type=self.repo_type,
            folder_path=str(folder),
            commit_message="Upload the data set",
            delete_patterns=["data/*", "skipped.jsonl"],
        )
        return str(url)

    def commit(self, files: dict[str, str | Path | bytes], stale: Callable[[str], bool], message: str) -> str:
        """Uploads files, by their paths in the repository, and removes others that are `stale`. Returns the URL."""
        url = self._create()
        there = self.api.list_repo_files(self.repository, repo_type=self.repo_type)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in there if name not in files and stale(name)]
        self.api.create_commit(self.repository, operations, commit_message=message, repo_type=self.repo_type)
        return str(url)

    def _create(self):
        return self.api.create_repo(self.repository, repo_type=self.repo_type, private=self.private, exist_ok=True)
