"""The command line: search, build, status, show, evaluate, export, import."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from . import console

app = typer.Typer(
    help="Find which layers of a language model to compress how much, and export the Pareto front.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(help="configuration file (YAML); ready ones are in configs/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. --set model=DIR")
]
Run = Annotated[Path, typer.Argument(help="run folder, e.g. runs/quickstart")]
RUNS = Path("runs")


@app.command()
def search(
    config: Config,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="run folder; default runs/NAME")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what the run folder holds")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan and its cost, do nothing")
    ] = False,
) -> None:
    """Search, or go on where the same command stopped."""
    from .exporters.report import write_report
    from .search.configuration import load_config
    from .search.job import run as run_job

    settings = load_config(config, overrides or [])
    folder = run or RUNS / settings.name
    if dry_run:
        _print_plan(settings, folder)
        return
    with console.progress() as listen, _resumable(folder):
        front = run_job(settings, folder, fresh=fresh, listen=listen, report=write_report)
    console.console.print(console.front_table(front))
    console.say(f"report: {folder / 'report.html'}")
    last = front["points"][-1]["budget"]
    console.say(f'next: paretopress export {folder} --budget "{last}" --output {folder / "model"}')


@app.command()
def build(
    config: Config,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="run folder; default runs/NAME")] = None,
) -> None:
    """Build the level database only."""
    from .search.assembly import assemble
    from .search.configuration import load_config
    from .search.job import build_levels

    settings = load_config(config, overrides or [])
    folder = run or RUNS / settings.name
    assembly = assemble(settings, folder.parent / "databases")
    with console.progress() as listen, _resumable(folder):
        build_levels(assembly, listen)
    console.say(f"levels: {assembly.database.path} ({assembly.database.bytes:,} bytes)")
    console.say(f"next: paretopress search {config}")


@app.command()
def status(run: Run) -> None:
    """How far a run is."""
    from .search.runfolder import RunFolder

    folder = RunFolder(_existing(run))
    checkpoint, front = folder.read_checkpoint(), folder.read_front()
    if checkpoint is None:
        console.say(f"{run}: no step is finished yet")
        return
    progress = checkpoint["progress"]
    state = "finished" if front else "searched, not reported" if checkpoint["finished"] else "not finished"
    console.say(f"{run}: {state}; {progress['steps']} steps, {progress['evaluations']} evaluations")
    tokens = progress["tokens"] + progress["teacher_tokens"]
    console.say(f"{tokens:,} tokens in {progress['seconds']:.0f} s of searching")
    for budget, curve in progress["curve"].items():
        if curve:
            console.say(
                f"{budget}: best calibration fitness {curve[-1][1]:.5f} after {curve[-1][0]:,.0f} tokens"
            )
    console.say(f"next: paretopress {'show ' + str(run) if front else 'search with the same command'}")


@app.command()
def show(run: Run, as_json: Annotated[bool, typer.Option("--json", help="print front.json")] = False) -> None:
    """The front as a table."""
    front = _front(run)
    if as_json:
        print(json.dumps(front, indent=1))
    else:
        console.console.print(console.front_table(front))


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="model folder, or a profile file of a run")],
    config: Annotated[
        Path, typer.Option(help="configuration that names the text and, for a profile, the levels")
    ],
    overrides: Overrides = None,
    data: Annotated[str, typer.Option(help="calibration, validation or heldout")] = "heldout",
    run: Annotated[Path | None, typer.Option(help="run folder; default runs/NAME")] = None,
) -> None:
    """Perplexity of a model folder, or perplexity and KL of a profile."""
    from .search.configuration import load_config
    from .search.measure import measure_model, measure_profile

    settings = load_config(config, overrides or [])
    folder = run or RUNS / settings.name
    if target.is_dir():
        figures = measure_model(settings, target, data)
    else:
        from .exporters.profiles import read_profile

        figures = measure_profile(settings, read_profile(target).units, folder.parent / "databases", data)
    for name, value in figures.items():
        console.say(f"{name}: {value:,.6g}" if isinstance(value, float) else f"{name}: {value:,}")


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="folder to make; must not exist or be empty")],
    budget: Annotated[str | None, typer.Option(help='a budget of the run, e.g. "bits 3.25" or 3.25')] = None,
    profile: Annotated[
        Path | None, typer.Option(help="a profile file instead of a point of the front")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is at the output")] = False,
) -> None:
    """Write a point of the front as a model that transformers loads."""
    from .exporters.hf import export_run

    summary = export_run(_existing(run), output, budget=budget, profile=profile, overwrite=overwrite)
    for line in summary:
        console.say(line)
    console.say(f"next: AutoModelForCausalLM.from_pretrained({str(output)!r})")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="an EvoPress configuration: bits, sparsity levels or drops")],
    output: Annotated[Path, typer.Option(help="profile file to write")],
    base: Annotated[float | None, typer.Option(help="sparsity in percent that level 0 means")] = None,
    step: Annotated[int, typer.Option(help="zeros per sparsity level")] = 1_000_000,
    group: Annotated[int, typer.Option(help="group size of quantised levels")] = 128,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="symmetric quantised levels")] = False,
) -> None:
    """Turn an EvoPress configuration into a profile file."""
    from .exporters.evopress import import_file

    console.say(import_file(file, output, base=base, step=step, group=group, symmetric=symmetric))


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    try:
        app(standalone_mode=False)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(console.fail(error))
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        raise


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C and say how to go on; every finished step is on disk at any moment."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        console.say(f"stopped; {folder} keeps everything measured. To go on, give the same command again.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _existing(run: Path) -> Path:
    if not run.is_dir():
        known = sorted(str(path.parent) for path in RUNS.glob("*/config.yaml"))
        raise FileNotFoundError(f"no run at {run}; runs here: {', '.join(known) or 'none'}")
    return run


def _front(run: Path) -> dict[str, Any]:
    from .search.runfolder import RunFolder

    front = RunFolder(_existing(run)).read_front()
    if front is None:
        raise FileNotFoundError(f"{run} has no front yet; `paretopress status {run}` tells how far it is")
    return front


def _print_plan(settings: Any, folder: Path) -> None:
    from .search.plan import plan

    for line in plan(settings, folder.parent / "databases"):
        console.say(line)
