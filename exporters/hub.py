"""Exports leave for the Hugging Face Hub, when the user says so: private unless they say otherwise."""

import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

_UNREACHABLE: type[Exception] = HfHubHTTPError.__bases__[0]
"""What its HTTP client raises; which client that is depends on the release."""


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository, before work is done for it.

    Raises:
        ValueError: it is not OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(f"{name!r} is no repository of the Hub; write OWNER/NAME")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder into a repository, which is made if there is none.

    The Hub, the token and whether there is a network are as `huggingface_hub` finds them (`HF_ENDPOINT`, `HF_TOKEN`,
    `hf auth login`, `HF_HUB_OFFLINE`).

    Args:
        folder: the export, which stays as it is whatever happens.
        repository: name of the repository, OWNER/NAME.
        public: make a public repository; without it one that is public already is refused.

    Returns:
        A line that says where it is.

    Raises:
        OSError: nobody is logged in, the Hub cannot be reached or refuses; the message has the command that tries it
            again.
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
        raise _failed(folder, repository, True, f"{repository} is public already, and --public was not given")
    return f"pushed: {api.endpoint}/{repository} ({'private' if private else 'public'})"


def _failed(folder: Path, repository: str, public: bool, fact: str) -> OSError:
    command = ["hf", "upload", repository, str(folder), ".", *([] if public else ["--private"])]
    return OSError(f"not pushed, {fact}; {folder} is complete, push it later: {shlex.join(command)}")
