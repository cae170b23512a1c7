"""What Ray workers ask for, and where they evaluate."""

from typing import Any

import pytest

from paretopress.evaluators.runner.numerics import EvaluationConfig
from paretopress.workers.configuration import RayConfig

pytest.importorskip("ray")

from paretopress.search.site.ray_site import place

CORES = 6


@pytest.mark.parametrize(
    ("evaluation", "workers", "gpus", "device", "asked"),
    [
        ({}, {}, False, "cpu", (0, CORES)),
        ({"threads": 3}, {}, False, "cpu", (0, 3)),
        ({"threads": 3}, {"cpus": 1}, False, "cpu", (0, 1)),
        ({}, {"cpus": 4}, False, "cpu", (0, 4)),
        ({}, {}, True, "cuda", (1, 0)),
        ({"threads": 3}, {}, True, "cuda", (1, 0)),
        ({}, {"gpus": 0.5, "cpus": 2}, True, "cuda", (0.5, 2)),
        ({}, {"gpus": 0}, True, "cpu", (0, CORES)),
        ({"device": "cpu"}, {}, True, "cpu", (0, CORES)),
        ({"device": "cuda:3"}, {}, True, "cuda", (1, 0)),
        ({"device": "cuda:2,cuda:5"}, {}, True, "cuda:0,cuda:1", (2, 0)),
        ({}, {"gpus": 2}, True, "cuda:0,cuda:1", (2, 0)),
        ({"device": "cuda"}, {"gpus": 3}, True, "cuda:0,cuda:1,cuda:2", (3, 0)),
    ],
)
def test_devices_threads_and_what_is_asked_for(
    evaluation: dict[str, Any],
    workers: dict[str, Any],
    gpus: bool,
    device: str,
    asked: tuple[float, float],
) -> None:
    given = RayConfig.model_validate({"kind": "ray", **workers})
    placed, there = place(EvaluationConfig(**evaluation), given, gpus=gpus, cores=CORES)
    assert there.device == device
    assert (placed.gpus, placed.cpus) == asked
    assert there.threads == evaluation.get("threads", CORES if asked[0] or "cpus" not in workers else 4)


def test_devices_and_gpus_of_different_number_are_refused() -> None:
    given = RayConfig.model_validate({"kind": "ray", "gpus": 0.5})
    with pytest.raises(
        ValueError, match=r"'cuda:0,cuda:1' names 2 GPUs, but workers.gpus is 0.5; give only one"
    ):
        place(EvaluationConfig(device="cuda:0,cuda:1"), given, gpus=True, cores=CORES)
