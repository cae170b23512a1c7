"""The results of a finished search: its front, and the profile files of the front's points."""

from ...spaces.profile_file import ProfileFile
from ..folder.front import Front, Incumbent, Point
from ..run.assembly import Assembly
from ..run.goals import Goal
from ..study.study import Study
from .outcome import conclude

COST_UNITS = {
    "bits": "bits/weight",
    "bytes": "bytes",
    "parameters": "fraction kept",
    "macs": "fraction of MACs",
    "branches": "branches",
    "latency": "µs/token",
}


def fingerprints(assembly: Assembly, fingerprint: str) -> dict[str, str]:
    """Return digests of everything that decides the values of a run, given the evaluator's `fingerprint`."""
    return {
        "model": assembly.checkpoint.fingerprint,
        "space": assembly.space.fingerprint,
        "database": assembly.database.fingerprint,
        "evaluation": fingerprint,
        **assembly.fingerprints,
    }


def make_front(assembly: Assembly, study: Study, goals: list[Goal], fingerprint: str) -> Front:
    """Choose the winners of a search and build its front.

    Args:
        assembly: objects of the run.
        study: the finished search.
        goals: budgets of the run with their baselines.
        fingerprint: fingerprint of the evaluator.
    """
    config, kind, progress = assembly.config, assembly.kind, study.progress
    method = "+".join(method.method for method in config.search)
    found = conclude(study, goals, assembly.data, kind=kind, seed=config.seed, method=method)
    return Front(
        name=config.name,
        model=config.model,
        cost_kind=kind,
        cost_unit=COST_UNITS[kind],
        points=found.points,
        baselines=found.baselines,
        dense={
            "heldout_perplexity": found.dense_perplexity,
            "bytes": assembly.model.parameters * assembly.model.dtype.itemsize,
        },
        archive=found.archive,
        looks=found.looks,
        validation_tokens=found.validation_tokens,
        validation_documents=assembly.data["validation"].groups,
        weights=_weights(assembly),
        method=method,
        seed=config.seed,
        evaluations=progress.evaluations,
        tokens=progress.tokens,
        teacher_tokens=progress.teacher_tokens,
        seconds=round(progress.seconds, 3),
        stopped=study.stopped,
        progress=[
            Incumbent(budget=name, tokens=tokens, fitness=fitness)
            for name, curve in progress.curve.items()
            for tokens, fitness in curve
        ],
        fingerprints=fingerprints(assembly, fingerprint),
    )


def profile_of(point: Point, front: Front) -> ProfileFile:
    """Return the content of the profile file of a point of the front."""
    figures = {name: value for name, value in point.heldout().items() if value is not None}
    return ProfileFile(
        point.profile,
        model=front.model,
        fingerprint=front.fingerprints["model"],
        method=point.method,
        budget=point.budget,
        costs=point.costs,
        heldout=figures,
    )


def _weights(assembly: Assembly) -> dict[str, int]:
    """Return the number of linear weights of each unit by unit name."""
    sizes = {
        n.path: n.in_features * n.out_features
        for n in (*assembly.structure.linears, *assembly.structure.ends.linears)
    }
    return {unit.name: sum(sizes[module] for module in unit.modules) for unit in assembly.space.units}
