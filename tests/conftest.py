"""What all tests share."""

import gc
import logging
from collections import defaultdict
from collections.abc import Iterator

import pytest
from _pytest.terminal import TerminalReporter
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

LONG = ("tests/end_to_end", "tests/exporters", "tests/layout")
"""Files that begin first, so that no process is left with one of them when the others are done."""
CLUSTER = (
    "tests/workers/cluster",
    "tests/end_to_end/cluster",
    "tests/end_to_end/test_resume.py",
    "tests/end_to_end/test_terminal.py",
)
"""Files of one process, which share a Ray and a driver."""
LISTED = 25
"""Files whose times are printed one by one."""

settings.register_profile("paretopress", deadline=None)  # a busy machine is no error
settings.load_profile("paretopress")


def _gpu() -> bool:
    import torch  # not above, where it would delay the start of the processes that run the tests

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, and skip what needs a GPU where there is none."""
    items.sort(key=lambda item: (not item.nodeid.startswith(CLUSTER), not item.nodeid.startswith(LONG)))
    if not _gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """One file to one process, and those of `CLUSTER` all to the same."""

    def _split_scope(self, nodeid: str) -> str:
        return CLUSTER[0] if nodeid.startswith(CLUSTER) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Return how tests are divided among processes."""
    return _Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Keep what the imports made out of the garbage collector, which takes 0.3 s to look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def ray_address() -> str:
    """The address of a machine with room for four workers, which all tests of a process share."""
    import ray

    if not ray.is_initialized():
        ray.init(
            "local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models as small as those of the tests only wait for each other's threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print what each file took, so that a slow one is seen when it becomes slow."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:LISTED]
    rest = sum(seconds.values()) - sum(duration for _, duration in slowest)
    terminalreporter.write_sep("=", "seconds of each file")
    for file, duration in slowest:
        terminalreporter.write_line(f"{duration:7.1f}  {file}")
    terminalreporter.write_line(f"{rest:7.1f}  {max(len(seconds) - LISTED, 0)} other files")
