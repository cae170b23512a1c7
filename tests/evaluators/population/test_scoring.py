"""Fitness and cross-entropy of students against float64 definitions, in any chunks and any company."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.population.scoring import Scorer, Student
from paretopress.evaluators.runner.runner import BlockRunner
from tests.architectures import LENGTH, random_tokens, save_model
from tests.evaluators.runner.test_runner import make_runner

BATCH, BATCHES, K = 3, 2, 5
HEADS = (None, "noisy", "halved")
HEAD = "lm_head"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> BlockRunner:
    model = save_model("llama", tmp_path_factory.mktemp("models") / "llama")
    return make_runner(model, micro_batch=BATCH)


class Heads:
    """Installs one of `HEADS`, and tells which it did."""

    def __init__(self, runner: BlockRunner) -> None:
        dense_VD = runner.checkpoint.tensor(f"{HEAD}.weight")
        noise_VD = torch.randn(dense_VD.shape, generator=torch.Generator().manual_seed(9))
        self.weights = {None: dense_VD, "noisy": dense_VD + 0.1 * noise_VD, "halved": dense_VD / 2}
        self.installed: list[str | None] = []
        self._runner = runner

    def __call__(self, label: str | None) -> None:
        self.installed.append(label)
        self._runner.install_ends({HEAD: self.weights[label]} if label else {})


def random_states(runner: BlockRunner, seed: int, size: float = 1.0) -> list[Tensor]:
    shape = (BATCHES, BATCH, LENGTH, runner.hidden)
    return list(size * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def some_students(runner: BlockRunner, teacher: Sequence[Tensor]) -> list[Student]:
    """The teacher itself, some that are near and some that are not, under every head."""
    near = [t + 0.1 * s for t, s in zip(teacher, random_states(runner, 1), strict=True)]
    return [
        Student(teacher, None),
        *(Student(near, head) for head in HEADS),
        Student(random_states(runner, 2, 3.0), "noisy"),
        Student(random_states(runner, 3), None),
    ]


def log_probs(runner: BlockRunner, states: Sequence[Tensor], head_VD: Tensor) -> Tensor:
    """Of every sequence's positions (N, T, V), by definition, in float64."""
    states_NTD = torch.cat(list(states)).double()
    size_NT1 = (states_NTD.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    normed_NTD = states_NTD / size_NT1 * runner.checkpoint.tensor(NORM).double()
    return (normed_NTD @ head_VD.double().T).log_softmax(-1)


def kl64(teacher_NTV: Tensor, student_NTV: Tensor) -> Tensor:
    return (teacher_NTV.exp() * (teacher_NTV - student_NTV)).sum(-1)


def topk_kl64(teacher_NTV: Tensor, student_NTV: Tensor) -> Tensor:
    """Over the teacher's K most likely tokens and all others as one."""
    order = teacher_NTV.argsort(-1, descending=True)
    merged = []
    for probs in (teacher_NTV.exp(), student_NTV.exp()):
        ranked = probs.gather(-1, order)
        merged.append(torch.cat([ranked[..., :K], ranked[..., K:].sum(-1, keepdim=True)], -1))
    return (merged[0] * (merged[0] / merged[1]).log()).sum(-1)


def expected(
    runner: BlockRunner,
    students: Sequence[Student],
    teacher: Sequence[Tensor],
    tokens: Sequence[Tensor],
    heads: Mapping[str | None, Tensor],
    fitness: str,
) -> np.ndarray:
    """(2, S, N)."""
    tokens_NT = torch.cat(list(tokens))
    teacher_NTV = log_probs(runner, teacher, heads[None]) if teacher else None
    values = []
    for student in students:
        student_NTV = log_probs(runner, student.states, heads[student.head])
        loss_N = -student_NTV[:, :-1].gather(-1, tokens_NT[:, 1:, None]).squeeze(-1).mean(-1)
        value_N = loss_N
        if teacher_NTV is not None:
            value_N = DIVERGENCES[fitness](teacher_NTV, student_NTV)[:, :-1].mean(-1)
        values.append(torch.stack([value_N, loss_N]))
    return torch.stack(values, 1).numpy()


EPSILON = 1e-6
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl64, "topk-kl": topk_kl64}
CHUNKS = [1, 7, LENGTH, 31, BATCH * LENGTH - 1, BATCH * LENGTH, 1000]
TOKENS = [random_tokens(BATCH, seed=i) for i in range(BATCHES)]


def make_scorer(runner: BlockRunner, fitness: str, chunk: int) -> tuple[Scorer, Heads]:
    heads = Heads(runner)
    return Scorer(runner, FitnessConfig.model_validate({"name": fitness, "k": K}), chunk, heads), heads


@pytest.mark.parametrize("fitness", DIVERGENCES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_scores_are_those_of_the_definition(fitness: str, chunk: int, runner: BlockRunner) -> None:
    teacher = random_states(runner, 0)
    students = some_students(runner, teacher)
    scorer, heads = make_scorer(runner, fitness, chunk)
    found = scorer(students, teacher, TOKENS)
    assert found.dtype == np.float64
    assert found.shape == (2, len(students), BATCHES * BATCH)
    exact = expected(runner, students, teacher, TOKENS, heads.weights, fitness)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
    assert exact[0, 1:].min() > 1e-4
    assert (found[0, 0] == 0).all()


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("taught", [False, True])
def test_cross_entropy_needs_no_teacher(chunk: int, taught: bool, runner: BlockRunner) -> None:
    teacher = random_states(runner, 0)
    students = some_students(runner, teacher)
    scorer, heads = make_scorer(runner, "cross-entropy", chunk)
    found = scorer(students, teacher if taught else [], TOKENS)
    exact = expected(runner, students, [], TOKENS, heads.weights, "cross-entropy")
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("fitness", [*DIVERGENCES, "cross-entropy"])
@pytest.mark.parametrize("chunk", [7, 31, 1000])
def test_company_and_order_change_no_bit(fitness: str, chunk: int, runner: BlockRunner) -> None:
    teacher = random_states(runner, 0)
    students = some_students(runner, teacher)
    scorer, _ = make_scorer(runner, fitness, chunk)
    together = scorer(students, teacher, TOKENS)
    assert np.array_equal(scorer(students[::-1], teacher, TOKENS), together[:, ::-1])
    for s, student in enumerate(students):
        alone = scorer([student], teacher, TOKENS)
        assert np.array_equal(alone, together[:, s : s + 1])
    for i in range(BATCHES):
        part = [Student(student.states[i : i + 1], student.head) for student in students]
        found = scorer(part, teacher[i : i + 1], TOKENS[i : i + 1])
        assert np.array_equal(found, together[:, :, i * BATCH : (i + 1) * BATCH])


def test_last_positions_and_other_sequences_do_not_count(runner: BlockRunner) -> None:
    teacher = random_states(runner, 0)
    (scorer, _), student = make_scorer(runner, "kl", 31), random_states(runner, 1)
    before = scorer([Student(student, None)], teacher, TOKENS)
    changed = [states_BTD.clone() for states_BTD in student]
    for states_BTD in changed:
        states_BTD[:, -1] = float("nan")
    assert np.array_equal(scorer([Student(changed, None)], teacher, TOKENS), before)
    changed[0][1, 3] = float("inf")
    after = scorer([Student(changed, None)], teacher, TOKENS)
    differs = np.isnan(after[:, 0])
    assert differs.tolist() == [[False, True, *[False] * (BATCHES * BATCH - 2)]] * 2
    assert np.array_equal(after[:, 0][~differs], before[:, 0][~differs])


def test_the_teacher_always_has_the_dense_head(runner: BlockRunner) -> None:
    teacher = random_states(runner, 0)
    scorer, heads = make_scorer(runner, "kl", 1000)
    students = [Student(teacher, "noisy"), Student(teacher, "noisy"), Student(teacher, None)]
    heads("halved")
    heads.installed.clear()
    found = scorer(students, teacher, TOKENS)
    assert (found[0, 2] == 0).all()
    assert found[0, :2].min() > 1e-3
    # Once for neighbours with the same head; the head that was there before changes nothing, the dense one is left.
    assert heads.installed == [*[None, "noisy", None] * BATCHES, None]


def test_sequences_may_be_shorter(runner: BlockRunner) -> None:
    teacher = [states_BTD[:, :5] for states_BTD in random_states(runner, 0)]
    tokens = [tokens_BT[:, :5] for tokens_BT in TOKENS]
    students = [Student([states_BTD[:, :5] for states_BTD in random_states(runner, 1)], None)]
    scorer, heads = make_scorer(runner, "kl", 4)
    exact = expected(runner, students, teacher, tokens, heads.weights, "kl")
    np.testing.assert_allclose(scorer(students, teacher, tokens), exact, rtol=1e-5)
