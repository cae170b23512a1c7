"""The outcome of a search: winners chosen on validation text, and figures measured on held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluators.text.packing import Sequences
from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.budget import in_units
from ...spaces.space import DENSE, Profile, Space
from ..folder.front import Figure, LookRow, Point
from ..run.goals import Goal
from ..study.looks import Look, look_rows
from ..study.selection import Choice, Contest, Finalist, choose, finalists
from ..study.study import Study

RESAMPLES = 2_000
"""Number of bootstrap samples for a confidence interval."""


@dataclass(frozen=True)
class Outcome:
    """The part of a front that is derived from measurements.

    Attributes:
        points: winner of every budget, in order of cost.
        baselines: baselines of all budgets, in order of cost.
        dense_perplexity: perplexity of the dense model on held-out text.
        archive: cost, in the front's unit, and fitness of every entry of the archive.
        looks: looks at validation text, compared with the uniform profiles.
        validation_tokens: number of validation tokens that went through the model, over all profiles.
    """

    points: list[Point]
    baselines: list[Point]
    dense_perplexity: float
    archive: list[list[Figure]]
    looks: list[LookRow]
    validation_tokens: int


def conclude(
    study: Study, goals: Sequence[Goal], data: Mapping[str, Sequences], *, kind: str, seed: int, method: str
) -> Outcome:
    """Choose one winner per budget and measure winners, baselines and the dense model on held-out text.

    The rule is the same for all methods. At most four finalists per budget are chosen by their calibration values. A
    one-sided paired sign-flip test over documents decides between them and the uniform profile. Its level is 5 % for
    the whole run, by Holm's correction over budgets and finalists.

    Args:
        study: the finished search.
        goals: budgets of the run with their baselines.
        data: sequences of each data set by name, with `validation` and `heldout` among them.
        kind: kind of cost that is the front's axis.
        seed: root of the random numbers of tests and intervals.
        method: name of the search, which is the method of winners that are not a baseline.
    """
    judge = _Judge(study, data, seed)
    fields = [_field(study, goal) for goal in goals]
    validated = judge.measure("validation", [profile for field in fields for profile in field])
    looks = study.looks.finish(study.progress.total_tokens, study.answers.evaluate) if study.looks else []
    documents = data["validation"].documents.tolist()
    choices = _choices(fields, validated, documents, seed)
    wanted = [choice.profile for choice in choices] + [b.profile for goal in goals for b in goal.baselines]
    heldout = judge.measure("heldout", [DENSE, *wanted])
    points, baselines = [], []
    for goal, choice in zip(goals, choices, strict=True):
        author = _author(study.answers.space, goal, choice, method)
        points.append(Point(**judge.row(author, goal, choice.profile, heldout, kind), **_verdict(choice)))
        for baseline in goal.baselines:
            baselines.append(Point(**judge.row(baseline.method, goal, baseline.profile, heldout, kind)))
    models = {look.model for look in looks} | {study.answers.space.key(profile) for profile in validated}
    return Outcome(
        sorted(points, key=lambda point: point.cost),
        sorted(baselines, key=lambda point: point.cost),
        heldout[DENSE].perplexity,
        [[in_units(kind, entry.cost, study.answers.space), entry.fitness] for entry in study.archive.entries],
        look_rows(looks, _uniforms(study, goals, validated)),
        data["validation"].tokens.size * len(models),
    )


def _uniforms(
    study: Study, goals: Sequence[Goal], validated: Mapping[Profile, Evaluation]
) -> dict[str, Look]:
    """Return a `Look` at the uniform profile of each budget, by budget name, if its calibration value is known."""
    known = {entry.profile: entry.fitness for entry in study.archive.entries}
    found = {}
    for goal in goals:
        profile = goal.baselines[0].profile
        model, value = study.answers.space.canonical(profile), validated.get(profile)
        if model in known:
            key, name = study.answers.space.key(model), goal.budget.name
            found[name] = Look(0, name, key, known[model], value.fitness if value else None)
    return found


def _choices(
    fields: Sequence[Sequence[Profile]],
    validated: Mapping[Profile, Evaluation],
    documents: Sequence[int],
    seed: int,
) -> list[Choice]:
    """Return the winner of each budget; profiles without finite validation values take no part.

    If the uniform profile has no finite values, the first finalist with finite values wins, without a claim of
    significance.

    Args:
        fields: the uniform profile and the finalists of each budget.
        validated: evaluations on validation text that are finite, by profile.
        documents: number of the document that each validation sequence comes from.
        seed: seed of the random sign vectors of the tests.
    """
    finite = [[Finalist(p, validated[p].values) for p in field if p in validated] for field in fields]
    contested = [i for i, field in enumerate(fields) if field[0] in validated]
    chosen = choose([Contest(finite[i][0], finite[i][1:], documents) for i in contested], seed)
    known = dict(zip(contested, chosen, strict=True))
    fallback = [
        next((f.profile for f in found), field[0]) for found, field in zip(finite, fields, strict=True)
    ]
    return [known.get(i, Choice(fallback[i], None, ())) for i in range(len(fields))]


def _field(study: Study, goal: Goal) -> list[Profile]:
    """Return the uniform profile of a budget, followed by the finalists."""
    uniform = goal.baselines[0].profile
    return [uniform, *finalists(study.archive, goal.limits, uniform)]


def _author(space: Space, goal: Goal, choice: Choice, method: str) -> str:
    """Return the name of the baseline that builds the same model as the winner, else the name of the method."""
    winner = space.canonical(choice.profile)
    return next((b.method for b in goal.baselines if space.canonical(b.profile) == winner), method)


def _verdict(choice: Choice) -> dict[str, Any]:
    """Return the point's fields on the test against the uniform profile: its significance and corrected p-value.

    The significance is None with too few documents for a claim. The p-value is None if the uniform profile won.
    """
    p_value = next((v.adjusted for v in choice.verdicts if v.profile == choice.profile), None)
    return {"significant": choice.significant, "p_value": p_value}


class _Judge:
    """Measures profiles on whole data sets and makes the rows of the front from the measurements."""

    def __init__(self, study: Study, data: Mapping[str, Sequences], seed: int) -> None:
        self.study = study
        self.data = data
        self.seed = seed

    def measure(self, which: str, profiles: Sequence[Profile]) -> dict[Profile, Evaluation]:
        """Evaluate profiles on all sequences of the data set `which`; leave out those without a finite fitness."""
        sequences = self.data[which]
        fidelity = Fidelity(0, 0, len(sequences), sequences.length, which)
        trials = [Trial(i, profile, fidelity) for i, profile in enumerate(dict.fromkeys(profiles))]
        evaluations = self.study.answers.evaluate(trials)
        return {e.trial.profile: e for e in evaluations if e.error is None}

    def row(
        self, method: str, goal: Goal, profile: Profile, heldout: Mapping[Profile, Evaluation], kind: str
    ) -> dict[str, Any]:
        """Return the fields of one point of the front, or of one baseline.

        Args:
            method: name of the method or baseline.
            goal: budget that the profile was chosen for.
            profile: profile of the point.
            heldout: evaluations on held-out text by profile.
            kind: kind of cost that is the front's axis.
        """
        space: Space = self.study.answers.space
        evaluation = heldout.get(profile)
        documents = self.data["heldout"].documents
        known = {entry.profile: entry.fitness for entry in self.study.archive.entries}
        return {
            "budget": goal.budget.name,
            "method": method,
            "cost": in_units(kind, space.cost(profile, kind), space),
            "costs": space.costs(profile),
            "bytes": space.cost(profile, "bytes"),
            "fitness": known.get(space.canonical(profile)),
            "heldout_kl": evaluation and evaluation.fitness,
            "heldout_perplexity": evaluation and evaluation.perplexity,
            "heldout_interval": evaluation and interval(evaluation.values, documents, self.seed),
            "profile": space.describe(profile),
        }


def interval(values: Sequence[float], documents: np.ndarray, seed: int) -> list[float]:
    """Return the lower and upper end of the 95 % interval of the mean, the percentiles of a bootstrap over documents.

    Sequences of one document are drawn together, because they are not independent.

    Args:
        values: value of each sequence.
        documents: number of the document that each sequence comes from.
        seed: seed of the bootstrap.
    """
    _, group = np.unique(documents, return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values))
    counts = np.bincount(group)
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return [float(x) for x in np.quantile(means, (0.025, 0.975))]
