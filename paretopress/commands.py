"""The commands: search, submit, build, sensitivities, refit, status, show, evaluate, export, import."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import console
from .export_commands import Run, export, import_
from .progress import progress
from .runs import existing, front_of, holder, occupant, settle

if TYPE_CHECKING:
    from .search.run.configuration import RunConfig

app = typer.Typer(
    help="Find which layers of a language model to compress how much, and export the Pareto front.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="configuration file (YAML); ready ones are in configs/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. --set model=DIR")
]
Folder = Annotated[Path | None, typer.Option(help="run folder; default runs/NAME")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="delete the earlier results in the run folder and start over")
]


@app.command()
def search(
    config: Config,
    overrides: Overrides = None,
    run: Folder = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan of the search and its cost, then stop")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            help="where evaluations run: local (this machine) or ray (a Ray cluster); "
            "default: the configuration's key `workers`"
        ),
    ] = None,
) -> None:
    """Search for the best profiles, or continue a stopped search."""
    chosen = [f"workers={workers}"] if workers else []
    settings, folder = settle(config, [*chosen, *(overrides or [])], run)
    _check_export(settings)
    if dry_run:
        _print_plan(settings, folder)
        return
    with _resumable(f"{folder} keeps everything that was measured"):
        _search(settings, folder, fresh)


@app.command()
def submit(
    config: Config,
    address: Annotated[str, typer.Option(help="dashboard of a Ray cluster, e.g. http://HEAD:8265")],
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option(help="run folder on the cluster; default '~/paretopress/runs/NAME' of its head node"),
    ] = None,
    fresh: Fresh = False,
    wait: Annotated[bool, typer.Option(help="follow the log until the search ends")] = True,
) -> int:
    """Run a search as a job of a Ray cluster, or continue it.

    If the search was stopped, the same command continues it.
    """
    from .submitting import submit as submit_search

    settings, _ = settle(config, overrides, None)
    return submit_search(settings, address, run, fresh=fresh, wait=wait)


@app.command(hidden=True)
def job(config: Config, run: Annotated[Path, typer.Option(help="run folder")], fresh: Fresh = False) -> None:
    """Run the search of a job that `submit` started."""
    from .submitting import arrive

    settings, folder = arrive(config, run)
    with _kept(f"{folder} keeps everything that was measured; submit the search again to continue it"):
        _search(settings, folder, fresh)


@app.command()
def build(
    config: Config,
    overrides: Overrides = None,
    run: Folder = None,
) -> None:
    """Build the level database without searching."""
    from .search.jobs.job import build_levels
    from .search.site.site import open_site

    settings, folder = settle(config, overrides, run)
    with closing(open_site(settings, folder.parent / "databases")) as site:
        database = site.assembly.database
        with _resumable(f"{database.path} keeps the blocks that were built"), progress() as listen:
            database.verify()
            build_levels(site, len(site.assembly.structure.blocks), listen)
    console.say(f"levels: {database.path} ({database.bytes:,} bytes)")
    _next_search(config, overrides, run)


@app.command()
def sensitivities(
    config: Config,
    overrides: Overrides = None,
    run: Folder = None,
    scores: Annotated[
        str | None,
        typer.Option(help="names of the scores, separated by commas or spaces, e.g. kl,nmse; default all"),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=2, help="number of calibration tokens for each measurement")
    ] = 8192,
    base: Annotated[
        Literal["best", "uniform"],
        typer.Option(
            help="levels of all other units while one unit is measured: the most expensive ones (best), "
            "or those of the uniform profile of the first budget (uniform)"
        ),
    ] = "best",
    check: Annotated[
        bool, typer.Option("--check", help="evaluate the profiles that are allocated by the scores")
    ] = False,
    fitness: Annotated[
        float | None,
        typer.Option(help="also find the cheapest profile whose predicted fitness is at most this number"),
    ] = None,
) -> None:
    """Score the levels of all units, and allocate by each score.

    For each budget and each score, the allocation is the profile with the smallest sum of that score. The scores are
    compared by their rank correlation with the measured score `kl`.
    """
    from .search.sensitivities.sensitivities import SCORES, check_scores
    from .search.sensitivities.sensitivities import sensitivities as compare_scores
    from .tables import allocation_table, score_table

    wanted = check_scores(SCORES if scores is None else scores.replace(",", " ").split())
    settings, folder = settle(config, overrides, run)
    kept = f"{folder / 'sensitivities'} keeps everything that was measured"
    with _resumable(kept), progress() as listen:
        found = compare_scores(
            settings,
            folder,
            scores=wanted,
            tokens=tokens,
            base=base,
            check=check,
            bound=fitness,
            listen=listen,
        )
    console.console.print(score_table(found))
    console.console.print(allocation_table(found))
    console.say(f"scores and profiles: {folder / 'sensitivities'}")
    _next_search(config, overrides, run)


@app.command()
def refit(
    run: Run,
    budget: Annotated[
        str | None, typer.Option(help="name of the budget to refit, e.g. 'bits 3.25'; default all")
    ] = None,
) -> None:
    """Rebuild the compressed weights of the points of a front.

    Each compressed layer is built again for the inputs that it gets from the compressed layers before it. The new
    weights of a point are kept if they are significantly better on the validation text.
    """
    from .exporters.report.report import write_report
    from .search.jobs.refit import refit as refit_run
    from .tables import front_table

    with _resumable(f"{run} keeps what was refitted"), progress() as listen:
        front = refit_run(existing(run), budget, listen=listen, report=write_report)
    console.console.print(front_table(front))
    _next_export(run, budget or front.points[-1].budget)


@app.command()
def status(run: Run) -> None:
    """Print the progress of a run."""
    from .search.folder.runfolder import RunFolder

    folder = RunFolder(existing(run))
    checkpoint, front = folder.read_checkpoint(), folder.read_front()
    if worker := occupant(run):
        console.say(f"{run}: in use by {worker}")
    if checkpoint is None:
        console.say(f"{run}: no step is finished yet")
    else:
        progress = checkpoint["progress"]
        state = (
            "finished"
            if front
            else "search finished, report not written"
            if checkpoint["finished"]
            else "not finished"
        )
        console.say(f"{run}: {state}; {progress['steps']} steps, {progress['evaluations']} evaluations")
        tokens = progress["tokens"] + progress["teacher_tokens"]
        console.say(f"{tokens:,} tokens in {progress['seconds']:.0f} s of searching")
        for budget, curve in progress["curve"].items():
            if curve:
                console.say(
                    f"{budget}: best calibration fitness {curve[-1][1]:.5f} after {curve[-1][0]:,.0f} tokens"
                )
    if front:
        _next("show", run)
    elif not worker:
        _next("search", run / "config.yaml", "--run", run)


@app.command()
def show(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="print front.json")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the front into an SVG file")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the SVG file")] = False,
) -> None:
    """Print the front as a table or as JSON, or draw it."""
    front = front_of(run)
    if svg is not None:
        from .exporters.report.picture import write_picture

        write_picture(front, svg, overwrite=overwrite)
        console.say(f"{svg}: the front of {run}")
    elif as_json:
        print(json.dumps(front.record(), indent=1, allow_nan=False))
    else:
        from .tables import front_table

        console.console.print(front_table(front))


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="model folder, or a profile file")],
    config: Annotated[
        Path | None,
        typer.Option(help="configuration that names the text and the levels; default: that of the run"),
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        str, typer.Option(help="text to evaluate on: calibration, validation or heldout")
    ] = "heldout",
    run: Annotated[
        Path | None, typer.Option(help="run folder; default: the run that the profile is in, or runs/NAME")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="also score the target on an lm-eval task, given by its file or its name",
        ),
    ] = None,
    dense: Annotated[bool, typer.Option(help="also score the dense model on the tasks")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
) -> None:
    """Measure perplexity, KL divergence and task scores.

    The target is a profile file or a model folder.
    """
    if not target.exists():
        raise FileNotFoundError(f"there is no {target}; give a model folder or a profile file")
    reported = config is None
    if config is None:
        run = existing(run or holder(target))
        config = run / "config.yaml"
    from .exporters.evaluate import evaluate_target
    from .exporters.report.report import write_report
    from .exporters.report.task_scores import keep_scores

    settings, folder = settle(config, overrides, run)
    figures, scores = evaluate_target(settings, target, folder, data, tasks or [], dense=dense)
    if scores and reported:
        keep_scores(folder, target, data, figures, scores)
        if reported := (folder / "front.json").exists():
            write_report(folder)
    if as_json:
        record = {"figures": figures, "tasks": [row.record() for row in scores]}
        print(json.dumps(record, indent=1, allow_nan=False))
        return
    for name, value in figures.items():
        console.say(f"{name}: {value:,.8g}" if isinstance(value, float) else f"{name}: {value:,}")
    if scores:
        from .tables import task_table

        console.console.print(task_table(scores))
        if reported:
            console.say(f"report: {folder / 'report.html'}")


app.command()(export)
app.command("import")(import_)


def _check_export(settings: "RunConfig") -> None:
    """Refuse, before any work, a search with the format `gguf` over a model that cannot be exported as a GGUF file."""
    if settings.space.format != "gguf":
        return
    from .exporters.gguf.gguf_families import architecture
    from .spaces.model.checkpoint import Checkpoint

    architecture(Checkpoint(settings.model, trust_remote_code=settings.trust_remote_code).config)


def _search(settings: "RunConfig", folder: Path, fresh: bool) -> None:
    """Run a search, then print its front, the hints, the path of the report and the next command."""
    from .exporters.report.report import write_report
    from .search.jobs.hints import hints
    from .search.jobs.job import run as run_job
    from .tables import front_table

    with progress() as listen:
        front = run_job(settings, folder, fresh=fresh, listen=listen, report=write_report)
    console.console.print(front_table(front))
    for hint in hints(front):
        console.say(hint)
    console.say(f"report: {folder / 'report.html'}")
    _next_export(folder, front.points[-1].budget)


@contextmanager
def _resumable(kept: str) -> Iterator[None]:
    """If Ctrl-C or SIGTERM interrupts the code in the context, print what is kept and the command that continues.

    Args:
        kept: text that says what is kept; nothing is saved here, because results are on disk at any moment.
    """
    command = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    with _kept(f"{kept}. To continue: {shlex.join(['paretopress', *command])}"):
        yield


@contextmanager
def _kept(text: str) -> Iterator[None]:
    """Print `text` if Ctrl-C or SIGTERM interrupts the code in the context."""
    try:
        yield
    except KeyboardInterrupt:
        console.note(f"stopped; {text}")
        raise


def _next(*command: str | Path) -> None:
    """Print the command that a user may want to run next."""
    console.say(f"next: {shlex.join(['paretopress', *map(str, command)])}")


def _next_export(run: Path, budget: str) -> None:
    """Print the command that exports the point of a budget."""
    from .search.folder.runfolder import file_name

    _next("export", run, "--budget", budget, "--output", f"{run.resolve().name}-{file_name(budget)}")


def _next_search(config: Path, overrides: list[str] | None, run: Path | None) -> None:
    """Print the search command with the same configuration, overrides and run folder."""
    given = [part for value in overrides or [] for part in ("--set", value)]
    _next("search", config, *given, *(("--run", run) if run else ()))


def _print_plan(settings: "RunConfig", folder: Path) -> None:
    """Print the plan of a search and its cost."""
    from .search.jobs.plan import plan

    for line in plan(settings, folder):
        console.say(line)
