"""Settings of where evaluations run."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


class LocalConfig(BaseModel):
    """Evaluations run in the process that searches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["local"] = "local"


class RayConfig(BaseModel):
    """Evaluations run on a Ray cluster, in one long-lived process per worker.

    Attributes:
        address: address of the cluster; by default `RAY_ADDRESS`, else a cluster that runs on this machine, else a new one.
        number: number of workers; by default as many as the cluster has room for, also when nodes come or go.
        gpus: GPUs of each worker; by default 1 where the evaluation's device is a GPU, else 0. A half means that two
            workers share one.
        cpus: CPUs of each worker; by default as many as the evaluation has threads, 0 for a worker with a GPU.
        retries: how often a trial whose worker failed on it alone is tried again before it is recorded as failed.
        max_failures: failures of workers in one run of the command after which the command ends with the first of them.
        deadline: seconds after which a worker that has not answered is ended, as one that hangs.
        patience: seconds that a search without any worker waits for one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["ray"]
    address: str | None = None
    number: PositiveInt | None = None
    gpus: NonNegativeFloat | None = None
    cpus: NonNegativeFloat | None = None
    retries: NonNegativeInt = 4
    max_failures: NonNegativeInt = 100
    deadline: PositiveFloat = 3600.0
    patience: PositiveFloat = 300.0


WorkersConfig = Annotated[LocalConfig | RayConfig, Field(discriminator="kind")]
