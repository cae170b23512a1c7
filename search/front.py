"""What a run leaves for others to read: the content of front.json and of the profile files."""

from typing import Any

from .assembly import Assembly
from .goals import Goal
from .outcome import conclude
from .study import Study

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
        "progress": [
            {"budget": name, "tokens": tokens, "fitness": fitness}
            for name, curve in study.progress.curve.items()
            for tokens, fitness in curve
        ],
        "fingerprints": fingerprints(assembly, fingerprint),
    }


def file_name(budget: str) -> str:
    """A budget's name as the name of its profile file."""
    return budget.replace(", ", "_").replace(" ", "-")


def profile_record(point: dict[str, Any], front: dict[str, Any]) -> dict[str, Any]:
    """The content of a point's profile file."""
    return {
        "model": front["model"],
        "fingerprint": front["fingerprints"]["model"],
        "method": point["method"],
        "budget": point["budget"],
        "costs": point["costs"],
        "heldout": {"kl": point["heldout_kl"], "perplexity": point["heldout_perplexity"]},
        "units": point["profile"],
    }


def _weights(assembly: Assembly) -> dict[str, int]:
    """Unit name to its number of linear weights."""
    sizes = {
        n.path: n.in_features * n.out_features
        for n in (*assembly.structure.linears, *assembly.structure.ends.linears)
    }
    return {unit.name: sum(sizes[module] for module in unit.modules) for unit in assembly.space.units}
