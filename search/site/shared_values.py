"""Values that runs over the same levels share: `values/` in the level database links to the journal of each."""

from pathlib import Path

from ...evaluators.journal.journal import Journal
from ..run.assembly import Assembly


def journals(assembly: Assembly, path: Path, name: str, fingerprint: str) -> tuple[Journal, Journal]:
    """The journal at `path`, linked as `name` for others, and a library of what the others hold by now.

    Args:
        assembly: a run whose levels are built.
        path: of its own journal.
        name: of the link, which no other run has.
        fingerprint: of the evaluator; values made with another one are not read.
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
