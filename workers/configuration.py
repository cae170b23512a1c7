"""Settings of the workers that run evaluations."""

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
        address: address of the cluster; by default the address in `RAY_ADDRESS`, else a cluster that runs on this
            machine, else a new cluster on this machine.
        number: number of workers; by default as many as the cluster has room for, also when nodes come or go.
        gpus: number of GPUs of each worker; by default one for every GPU that the evaluation's device names, 0 for the
            CPU. With 0.5, two workers share a GPU.
        cpus: number of CPUs of each worker; by default the number of threads of the evaluation, or 0 for a worker with
            a GPU.
        retries: number of times that a trial is tried again after a worker failed on that trial only; then the trial is
            recorded as failed.
        max_failures: number of failures of workers in one call of the command; with one more, the command ends and
            shows the first of them.
        deadline: seconds after which a worker that has not answered is taken for hung and ended.
        patience: seconds that a search waits for a worker when it has none.
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
