"""Upload of exports to the Hugging Face Hub, on the user's request, to private repositories by default."""

import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

_UNREACHABLE: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base class of the HTTP client's errors; the client depends on the release of `huggingface_hub`."""


def check_repository(name: str) -> None:
    """Refuse a text that is no name of a repository, before an export is made for it.

    Raises:
        ValueError: the name is not of the form OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(f"{name!r} is no repository of the Hub; write OWNER/NAME")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder to a repository, which is created if it does not exist.

    The address of the Hub, the token and the offline mode are those of `huggingface_hub` (`HF_ENDPOINT`, `HF_TOKEN`,
    `hf auth login`, `HF_HUB_OFFLINE`).

    Args:
        folder: folder of the export, which is never changed.
        repository: name of the repository, OWNER/NAME.
        public: whether the repository may be public; if not, a new repository is private, and one that is public
            already is refused.

    Returns:
        A line with the address of the repository.

    Raises:
        OSError: nobody is logged in, the Hub cannot be reached or refuses the upload, or the repository is public
            without `public`. The message says how to repeat the upload.
    """
    if get_token() is None:
        raise _failed(folder, repository, public, "nobody is logged in (`hf auth login`, or HF_TOKEN)")
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        private = bool(api.model_info(repository).private)
        exposed = not public and not private
        if not exposed:
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of paretopress")
    except HfHubHTTPError as error:
        fact = f"the Hub refused: {error.server_message or error}"
        raise _failed(folder, repository, public, fact) from error
    except (_UNREACHABLE, OSError, RuntimeError) as error:
        fact = f"the upload to {api.endpoint} broke off: {error}"
        raise _failed(folder, repository, public, fact) from error
    if exposed:
        # No command is suggested: `hf upload --private` would upload to the public repository all the same.
        raise OSError(
            f"not pushed, {repository} is public already; {folder} is complete, export again with --overwrite and "
            "--public to push it there, or name a private repository"
        )
    return f"pushed: {api.endpoint}/{repository} ({'private' if private else 'public'})"


def _failed(folder: Path, repository: str, public: bool, fact: str) -> OSError:
    """Return the error for a failed upload, with the command that repeats the upload."""
    command = ["hf", "upload", repository, str(folder), ".", *([] if public else ["--private"])]
    return OSError(f"not pushed, {fact}; {folder} is complete, push it later: {shlex.join(command)}")
