"""The rules for failures of workers: which trials are tried again, and which are answered with an error."""

from dataclasses import dataclass, replace

from ...evaluators.trial import Evaluation
from .splitting import Part


@dataclass(frozen=True, eq=False)
class Task:
    """Trials for one worker; tasks are compared by identity.

    Attributes:
        trials: trials of one stage.
        tries: number of times that a worker failed on these trials.
        final: whether an evaluation with an error is accepted, instead of being tried once more.
    """

    trials: Part
    tries: int = 0
    final: bool = False


def settle(task: Task, answers: list[Evaluation] | str, retries: int) -> tuple[list[Task], list[Evaluation]]:
    """Decide what follows when a task ended.

    If the worker failed, several trials are tried once more together and then each in a task of its own, so that one
    model that makes workers fail does not take other trials with it. A trial in a task of its own is tried `retries`
    times more and then answered with the error. An evaluation with an error, which the worker survived, is tried once
    more.

    Args:
        task: task that ended.
        answers: evaluations of all trials of the task, or the text of the error that the worker failed with.
        retries: number of times that a trial in a task of its own is tried again.

    Returns:
        Tasks to try again, and evaluations to give as answers.

    Raises:
        ConnectionError: the worker failed too often on an essential trial, so the search ends.
    """
    if isinstance(answers, str):
        if len(task.trials) > 1 and task.tries:
            return [Task([trial]) for trial in task.trials], []
        if len(task.trials) > 1 or task.tries < retries:
            return [replace(task, tries=task.tries + 1)], []
        if task.trials[0].essential:
            raise ConnectionError(
                f"{task.trials[0].asks_for} failed {task.tries + 1} times: {answers}; give the same command to go on"
            )
        return [], [Evaluation(trial, (), (), error=answers) for trial in task.trials]
    odd = [] if task.final else [answer.trial for answer in answers if answer.error is not None]
    again = [Task(odd, final=True)] if odd else []
    return again, [answer for answer in answers if answer.error is None or task.final]
