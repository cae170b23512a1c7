"""The registry of search methods. A new method is imported here and added to `SearchConfig`."""

from typing import Annotated, get_args

from pydantic import Field

from ..asking.method import MethodConfig
from ..frontier.frontier import FrontierConfig
from ..methods.bayes import OptunaConfig
from ..methods.dp import DPConfig
from ..methods.evolution import EvolutionConfig
from ..methods.greedy import GreedyConfig
from ..methods.random import RandomConfig

SearchConfig = Annotated[
    FrontierConfig | DPConfig | EvolutionConfig | OptunaConfig | GreedyConfig | RandomConfig,
    Field(discriminator="method"),
]
"""Settings of any method; the key `method` says which."""

METHODS: dict[str, type[MethodConfig]] = {
    kind.model_fields["method"].default: kind for kind in get_args(get_args(SearchConfig)[0])
}
"""The class of each method's settings by the method's name, in the order in which methods are listed to users."""
