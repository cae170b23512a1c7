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
    output: Annotated[Path, typer.Option(help="folder to write; it must be empty or not exist yet")],
    budget: Annotated[
        str | None, typer.Option(help='export the point of this budget, e.g. "bits 3.25" or 3.25')
    ] = None,
    point: Annotated[
        int | None,
        typer.Option(help="export the point with this number, from 1 in the order of `paretopress show`"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="export the best point of at most this total size, e.g. 4.2GB, 900MiB or a number of bytes"
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="export this profile file instead of a point of the front")
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
            help="what to do where layers that vLLM fuses (q/k/v, gate/up) have different levels: refuse the "
            "export, raise all of them to the widest level, or keep them; default refuse",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier export in the output folder")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(help="measure the exported model on the held-out text, and compare it with the front"),
    ] = True,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="upload the export to a private repository of the Hugging Face Hub"
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="make the repository of --push public")] = False,
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
    file: Annotated[
        Path, typer.Argument(help="EvoPress configuration file with bits, sparsity levels or drops")
    ],
    output: Annotated[Path, typer.Option(help="profile file to write")],
    base: Annotated[
        float | None,
        typer.Option(
            help="percentage of zeros at sparsity level 0; default: the number that ends the file name"
        ),
    ] = None,
    step: Annotated[
        int, typer.Option(help="number of zeros from one sparsity level to the next")
    ] = 1_000_000,
    group: Annotated[
        int, typer.Option(help="number of weights that share a scale at quantised levels; 0: whole rows")
    ] = 128,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="quantised levels have no zero point")
    ] = False,
    kind: Annotated[
        Literal["quantization", "sparsity", "drop"] | None,
        typer.Option(help="kind of the file; default: recognised by its content"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier profile file of that name")
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
