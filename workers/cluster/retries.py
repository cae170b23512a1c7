"""What is tried again after a failure, and what is taken as an answer."""

from dataclasses import dataclass, replace

from ...evaluators.trial import Evaluation
from .splitting import Part


@dataclass(frozen=True, eq=False)
class Task:
    """Trials for one worker; tasks are told apart by identity.

    Attributes:
        trials: of one fidelity.
        tries: how often a worker failed on them.
        final: whether an answer without values is taken as it is.
    """

    trials: Part
    tries: int = 0
    final: bool = False


def settle(task: Task, answers: list[Evaluation] | str, retries: int) -> tuple[list[Task], list[Evaluation]]:
    """What to try again, and what to give as an answer.

    Trials that failed together are tried once more together, then each alone, so that one model takes no other with
    it; a trial that failed alone `retries` times more is answered with the error. A model without finite values
    is tried once more.

    Args:
        task: the task that ended.
        answers: evaluations of all its trials, or the error that its worker failed with.
        retries: how often a trial is tried again on its own.

    Raises:
        ConnectionError: slopes cannot be had; without them this would be another search.
    """
    if isinstance(answers, str):
        if len(task.trials) > 1 and task.tries:
            return [Task([trial]) for trial in task.trials], []
        if len(task.trials) > 1 or task.tries < retries:
            return [replace(task, tries=task.tries + 1)], []
        if task.trials[0].slopes:
            raise ConnectionError(
                f"slopes failed {task.tries + 1} times: {answers}; the same command goes on from here"
            )
        return [], [Evaluation(trial, (), (), error=answers) for trial in task.trials]
    odd = [] if task.final else [answer.trial for answer in answers if answer.error is not None]
    again = [Task(odd, final=True)] if odd else []
    return again, [answer for answer in answers if answer.error is None or task.final]
