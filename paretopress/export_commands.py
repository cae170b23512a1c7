"""The commands `export`, which writes a model or recipe, and `import`, which reads a configuration of EvoPress."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import console
from .exporters.formats import FORMATS
from .runs import existing

Run = Annotated[Path, typer.Argument(help="run folder, e.g. runs/quickstart")]


def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="folder to make; must not exist or be empty")],
    budget: Annotated[str | None, typer.Option(help='a budget of the run, e.g. "bits 3.25" or 3.25')] = None,
    point: Annotated[
        int | None, typer.Option(help="a point of the front, from 1, in the order of `paretopress show`")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="the best point that takes no more bytes in all, e.g. 4.2GB, 900MiB or a number"),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="a profile file instead of a point of the front")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="; ".join(f"{form.name}: {form.writes}" for form in FORMATS.values()),
        ),
    ] = "hf",
    fused: Annotated[
        str | None,
        typer.Option(
            metavar="refuse|raise|keep",
            help="what to do where q/k/v or gate/up differ, which vLLM fuses; default refuse",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the export that is at the output")
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="measure what was written on the held-out text, compare with the front")
    ] = True,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="upload it to the Hugging Face Hub, private")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="let everybody see what --push uploads")] = False,
) -> None:
    """Write a point of the front as a model or recipe that other programs load."""
    from .exporters.export import export_run

    if public and push is None:
        raise ValueError("--public is of no use without --push OWNER/NAME; omit it")
    if push is not None:
        from .exporters.hub import check_repository

        check_repository(push)
    lines = export_run(
        existing(run),
        output,
        budget=budget,
        point=point,
        size=size,
        profile=profile,
        form=form,
        fused=fused,
        overwrite=overwrite,
        measure=measure,
        say=console.note,
    )
    for line in lines:
        console.say(line)
    if push is not None:
        from .exporters.hub import push as push_folder

        console.say(push_folder(output, push, public=public))


def import_(
    file: Annotated[Path, typer.Argument(help="an EvoPress configuration: bits, sparsity levels or drops")],
    output: Annotated[Path, typer.Option(help="profile file to write")],
    base: Annotated[float | None, typer.Option(help="sparsity in percent that level 0 means")] = None,
    step: Annotated[int, typer.Option(help="zeros per sparsity level")] = 1_000_000,
    group: Annotated[int, typer.Option(help="group size of quantised levels; 0: whole rows")] = 128,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="symmetric quantised levels")] = False,
    kind: Annotated[
        Literal["quantization", "sparsity", "drop"] | None,
        typer.Option(help="what the file holds; default told by its content"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the profile file that is at the output")
    ] = False,
) -> None:
    """Turn an EvoPress configuration into a profile file."""
    from .exporters.recipes.evopress import import_file

    told = import_file(
        file,
        output,
        base=base,
        step=step,
        group=group or None,
        symmetric=symmetric,
        kind=kind,
        overwrite=overwrite,
    )
    console.say(told)
