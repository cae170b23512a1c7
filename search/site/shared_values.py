"""Sharing of values between runs with the same level database, whose folder `values/` links to each run's journal."""

from pathlib import Path

from ...evaluators.journal.journal import Journal
from ..run.assembly import Assembly


def journals(assembly: Assembly, path: Path, name: str, fingerprint: str) -> tuple[Journal, Journal]:
    """Open the journal of a run, link to it for other runs, and open the journals of the other runs.

    Args:
        assembly: objects of the run, whose levels must be built.
        path: path of the run's own journal.
        name: name of the link, which must be unique among the runs.
        fingerprint: fingerprint of the evaluator; values made with another fingerprint are not read.

    Returns:
        The run's own journal, and a journal for reading only with the values that other runs have so far.
    """
    folder = assembly.database.path / "values"
    folder.mkdir(parents=True, exist_ok=True)
    own, link = path.resolve(), folder / f"{name}.jsonl"
    if not (link.is_symlink() and link.resolve() == own):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(own)
    others = [other for other in sorted(folder.glob("*.jsonl")) if other.resolve() != own]
    library = Journal(path.parent / ".no-journal", fingerprint, others)
    return Journal(path, fingerprint), library
