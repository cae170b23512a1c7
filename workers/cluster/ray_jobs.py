"""Jobs on a Ray cluster, through the dashboard of its head node.

A job is a command that the head node runs, in a temporary folder that every node has a copy of. It outlives whoever
follows it.
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
"""Bytes of files that travel with a job: a dashboard takes 100 MiB in one request, and every node unpacks a copy."""

_PORT = 8265
_CONNECT = 10.0  # seconds for a host to answer at all
_SILENCE = 60.0  # seconds without a line after which a connection is taken for dead
_ATTEMPTS = 30  # to find a dashboard again
_AGAIN = 2.0  # seconds between them
_TALKATIVE = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        code: exit code: the command's, 130 if it was stopped, 1 if it never ran.
        text: the last line of its log, or why it never ran.
    """

    code: int
    text: str


class Jobs:
    """The jobs of one cluster.

    Args:
        address: address of the dashboard, for example `http://HEAD:8265`.

    Raises:
        ConnectionError: no dashboard that takes jobs answers there.
        PermissionError: the dashboard wants a token, or another one.

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
        """Start a command.

        Args:
            job: a name that no other job of the cluster has.
            command: for a shell.
            package: folder of a Python package that the command and its workers import.
            files: folder whose content lies in the command's working directory.
            metadata: what the dashboard shows beside it.

        Raises:
            ConnectionError: the cluster does not take it.
        """
        # Usage statistics are the user's to give, so nothing that runs for us reports any.
        variables = {"RAY_USAGE_STATS_ENABLED": "0"}
        environment = {"working_dir": str(files), "py_modules": [str(package)], "env_vars": variables}
        with self._clear():
            self._client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=environment, metadata=dict(metadata)
            )

    def follow(self, job: str, write: Callable[[str], object]) -> Ending:
        """Write a job's log from its beginning until the job ends; a connection that breaks is made again.

        Raises:
            ConnectionError: the dashboard is gone.
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
                        "again, or submit the same once more when there is a cluster"
                    ) from error
                time.sleep(_AGAIN)

    async def _tail(self, job: str, log: "_Log") -> None:
        """Show the log until it ends or is silent for long."""
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
        """Say in one line what Ray says in several."""
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
    """What was written of a log that may come again from its beginning."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen = 0

    def show(self, piece: str, start: int) -> None:
        """Write what is new of a piece that starts at a character of the log."""
        if new := piece[max(self._seen - start, 0) :]:
            self._write(new)
        self._seen = max(self._seen, start + len(piece))


def _complete(address: str) -> str:
    """The address with scheme and port.

    Raises:
        ValueError: it is none.
    """
    whole = address if "://" in address else f"http://{address}"
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"address {address!r} is no dashboard's; give http://HEAD:{_PORT}")
    if ":" not in parts.netloc.rpartition("]")[2]:
        parts = parts._replace(netloc=f"{parts.netloc}:{_PORT}")
    return parts.geturl().rstrip("/")


def _reach(address: str) -> None:
    """Refuse a place where nothing answers, at once; Ray would try for minutes, or wait for ever.

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
    """Hold off the variables that Ray prefers to the address that it is given."""
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
        return Ending(130, "it was stopped")
    if details.driver_exit_code is None:
        return Ending(1, _last(details.message or ""))
    return Ending(details.driver_exit_code if details.driver_exit_code > 0 else 1, _last(log))


def _last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no word why"]
    return lines[-1].removeprefix("paretopress: ")


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
