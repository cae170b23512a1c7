"""Jobs on a Ray cluster, submitted and followed through the dashboard of its head node.

A job is a command that the head node runs, in a temporary folder of which every node has a copy. It goes on when the
process that submitted or follows it ends.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

PARCEL = 96 * 2**20
"""Most bytes of files sent with a job. A dashboard takes 100 MiB in one request, and every node unpacks a copy."""

_PORT = 8265
_CONNECT = 10.0  # seconds that a host has to answer
_SILENCE = 60.0  # seconds without a line of the log after which the connection is taken for dead
_ATTEMPTS = 30  # attempts to reach a lost dashboard again
_AGAIN = 2.0  # seconds between these attempts
_TALKATIVE = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Ending:
    """The way in which a job ended.

    Attributes:
        code: exit code of the command, 130 if the job was stopped, or 1 if the command never ran or was killed.
        text: last line of the job's log, or the reason why the command never ran; empty after a success.
    """

    code: int
    text: str


class Jobs:
    """The jobs of one cluster.

    Args:
        address: address of the dashboard, for example `http://HEAD:8265`; scheme and port may be left out.

    Raises:
        ValueError: the address is not that of a dashboard.
        ConnectionError: no dashboard that takes jobs answers at the address.
        PermissionError: the dashboard asks for a token and got none or a wrong one.

    Attributes:
        address: address of the dashboard with its scheme and port.
    """

    def __init__(self, address: str) -> None:
        self.address = _complete(address)
        _reach(self.address)
        for name in _TALKATIVE:
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        with self._clear(), _only(self.address):
            self._client = JobSubmissionClient(self.address)

    def submit(self, job: str, command: str, package: Path, files: Path, metadata: Mapping[str, str]) -> None:
        """Start a command as a job.

        Args:
            job: name that no other job of the cluster has.
            command: command line for a shell.
            package: folder of a Python package that the command and its workers import.
            files: folder whose content is copied into the command's working directory.
            metadata: texts by name that the dashboard shows with the job.

        Raises:
            ConnectionError: the cluster does not take the job.
            PermissionError: the dashboard asks for a token and got none or a wrong one.
        """
        # Whether to send usage statistics to Ray is the user's choice, so jobs of this program send none.
        variables = {"RAY_USAGE_STATS_ENABLED": "0"}
        environment = {"working_dir": str(files), "py_modules": [str(package)], "env_vars": variables}
        with self._clear():
            self._client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=environment, metadata=dict(metadata)
            )

    def follow(self, job: str, write: Callable[[str], object]) -> Ending:
        """Follow a job until it ends, and reconnect when the connection breaks.

        Args:
            job: name of the job.
            write: function that gets the job's log in pieces, from its beginning, each piece once.

        Returns:
            Exit code and last message of the job.

        Raises:
            ConnectionError: the dashboard could not be reached again.
        """
        log = _Log(write)
        failures = 0
        while True:
            try:
                details = self._client.get_job_info(job)
                failures = 0
                if details.status.is_terminal():
                    text = self._client.get_job_logs(job)
                    log.show(text, 0)
                    return _ending(details, text)
                asyncio.run(self._tail(job, log))
            except (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError) as error:
                failures += 1
                if failures > _ATTEMPTS:
                    raise ConnectionError(
                        f"lost the cluster at {self.address}: {_line(error)}; job {job} may still run: follow it "
                        "again, or give the same command again when there is a cluster"
                    ) from error
                time.sleep(_AGAIN)

    async def _tail(self, job: str, log: "_Log") -> None:
        """Show the log until it ends or no line comes for `_SILENCE` seconds."""
        pieces = aiter(self._client.tail_job_logs(job))
        start = 0
        while True:
            try:
                piece = await asyncio.wait_for(anext(pieces), _SILENCE)
            except (StopAsyncIteration, TimeoutError):
                return
            log.show(piece, start)
            start += len(piece)

    @contextmanager
    def _clear(self) -> Iterator[None]:
        """Replace Ray's long error messages by errors of one line."""
        try:
            yield
        except AuthenticationError as error:
            raise PermissionError(
                f"the cluster at {self.address} takes no jobs from here: {_line(error)}; set RAY_AUTH_MODE=token, and "
                "copy ~/.ray/auth_token from its head node or set RAY_AUTH_TOKEN"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"the cluster at {self.address} takes no jobs: {_line(error)}; give the address of its dashboard, "
                "and install `ray[default]` there"
            ) from error


class _Log:
    """Writes a log once, although every new connection sends it again from its beginning."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen = 0

    def show(self, piece: str, start: int) -> None:
        """Write the part of a piece that was not written before; the piece begins at character `start` of the log."""
        if new := piece[max(self._seen - start, 0) :]:
            self._write(new)
        self._seen = max(self._seen, start + len(piece))


def _complete(address: str) -> str:
    """Return a dashboard's address with scheme and port.

    Raises:
        ValueError: the address has no host name, or a scheme other than http and https.
    """
    whole = address if "://" in address else f"http://{address}"
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is not the address of a Ray dashboard; give http://HEAD:{_PORT}")
    if ":" not in parts.netloc.rpartition("]")[2]:
        parts = parts._replace(netloc=f"{parts.netloc}:{_PORT}")
    return parts.geturl().rstrip("/")


def _reach(address: str) -> None:
    """Refuse an address where nothing answers within `_CONNECT` seconds; Ray would try for minutes or wait for ever.

    Raises:
        ConnectionError: nothing answers at the address.
    """
    parts = urlsplit(address)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        with closing(kind(parts.hostname or "", parts.port or _PORT, timeout=_CONNECT)) as connection:
            connection.request("GET", f"{parts.path}/api/version")
            connection.getresponse()
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"no Ray dashboard at {address}: {_line(error)}; start the head node with `ray start --head "
            "--dashboard-host=0.0.0.0`, with `ray[default]` installed"
        ) from error


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Set RAY_API_SERVER_ADDRESS to `address` while the context lasts, because Ray prefers it over its argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _ending(details: Any, log: str) -> Ending:
    if details.status == JobStatus.SUCCEEDED:
        return Ending(0, "")
    if details.status == JobStatus.STOPPED:
        return Ending(130, "the job was stopped")
    if details.driver_exit_code is None:
        return Ending(1, _last(details.message or ""))
    return Ending(details.driver_exit_code if details.driver_exit_code > 0 else 1, _last(log))


def _last(text: str) -> str:
    """Return the last line of a text that is not empty, without the program's own prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["the job gave no reason"]
    return lines[-1].removeprefix("paretopress: ")


def _line(error: BaseException) -> str:
    """Return the first line of an error's text, or the error's type if it has no text."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
