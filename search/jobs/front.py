"""What a run leaves for others to read: the content of front.json and of the profile files."""

from typing import Any

from ..run.assembly import Assembly
from ..run.goals import Goal
from ..run.messages import nearest
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
    """Digests of all that decides the values of a run; `fingerprint` is the evaluator's."""
    return {
        "model": assembly.checkpoint.fingerprint,
        "space": assembly.space.fingerprint,
        "database": assembly.database.fingerprint,
        "evaluation": fingerprint,
        **{name: sequences.fingerprint for name, sequences in assembly.data.items()},
    }


def make_front(assembly: Assembly, study: Study, goals: list[Goal], fingerprint: str) -> dict[str, Any]:
    """The content of front.json."""
    config, kind = assembly.config, assembly.kind
    found = conclude(
        study,
        goals,
        assembly.data,
        kind=kind,
        seed=config.seed,
        method="+".join(method.method for method in config.search),
    )
    parameters = sum(parameter.numel() for parameter in assembly.checkpoint.skeleton().parameters())
    return {
        "name": config.name,
        "model": config.model,
        "cost_kind": kind,
        "cost_unit": COST_UNITS[kind],
        **found,
        "weights": _weights(assembly),
        "dense": found["dense"] | {"bytes": parameters * assembly.checkpoint.dtype.itemsize},
        "method": "+".join(method.method for method in config.search),
        "seed": config.seed,
        "evaluations": study.progress.evaluations,
        "tokens": study.progress.tokens,
        "teacher_tokens": study.progress.teacher_tokens,
        "seconds": round(study.progress.seconds, 3),
        "stopped": study.stopped,
        "progress": [
            {"budget": name, "tokens": tokens, "fitness": fitness}
            for name, curve in study.progress.curve.items()
            for tokens, fitness in curve
        ],
        "fingerprints": fingerprints(assembly, fingerprint),
    }


def profile_record(point: dict[str, Any], front: dict[str, Any]) -> dict[str, Any]:
    """The content of a point's profile file."""
    return {
        "model": front["model"],
        "fingerprint": front["fingerprints"]["model"],
        "method": point["method"],
        "budget": point["budget"],
        "costs": point["costs"],
        "heldout": heldout_figures(point),
        "units": point["profile"],
    }


def find_point(front: dict[str, Any], budget: str) -> dict[str, Any]:
    """The point of a budget, by its name or by its last word (`bits 3.25` or `3.25`).

    Raises:
        ValueError: there is none, or more than one.
    """
    names = [point["budget"] for point in front["points"]]
    exact = [point for point in front["points"] if point["budget"] == budget]
    found = exact or [point for point in front["points"] if point["budget"].split()[-1] == budget]
    if len(found) != 1:
        raise ValueError(f"budget {budget!r} is not one of this run's; {nearest(budget, names)}")
    point: dict[str, Any] = found[0]
    return point


def heldout_figures(point: dict[str, Any]) -> dict[str, Any]:
    """Held-out figures of the weights that stand for a point: its refit's, if that was kept."""
    refit = point.get("refit") or {}
    source = refit if refit.get("kept") else point
    return {"kl": source["heldout_kl"], "perplexity": source["heldout_perplexity"]}


def _weights(assembly: Assembly) -> dict[str, int]:
    """Unit name to its number of linear weights."""
    sizes = {
        n.path: n.in_features * n.out_features
        for n in (*assembly.structure.linears, *assembly.structure.ends.linears)
    }
    return {unit.name: sum(sizes[module] for module in unit.modules) for unit in assembly.space.units}
