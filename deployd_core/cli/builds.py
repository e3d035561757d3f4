"""`deployd builds`: making what is deployed."""

from __future__ import annotations

from pathlib import Path

import click

from deployd_core.cli.groups import Group
from deployd_core.cli.output import message, print_json
from deployd_core.cli.settings import debug_option, json_option

FORMATS = ("gz", "zst", "xz", "zip")


@click.group("builds", cls=Group, examples=["deployd builds pack dist/ --build 2026.11.23-1 --out /srv/builds/"])
def command() -> None:
    """Make builds."""


@command.command(
    "pack",
    examples=[
        "deployd builds pack dist/ --build 2026.11.23-1 --out /srv/builds/",
        "deployd builds pack dist/ --service web --build v7 --format zst",
        "deployd builds pack dist/ --out web-v7.tar.xz --json",
    ],
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--build", metavar="ID", help="The id of the build. [default: the name of DIR]")
@click.option("--service", metavar="NAME", help="Put it before the id in the file's name: NAME-ID.tar.gz.")
@click.option("--out", metavar="FILE|DIR", type=click.Path(), help="Where to write it. [default: this directory]")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Compression. [default: what --out ends in, else gz]")
@click.option(
    "--mtime", metavar="SECONDS", type=int, envvar="SOURCE_DATE_EPOCH", show_envvar=True, help="Time of all files. [default: 1980]"
)
@click.option("--replace", is_flag=True, help="Overwrite another archive of this name.")
@json_option
@debug_option
def pack_build(
    *,
    directory: Path,
    build: str | None,
    service: str | None,
    out: str | None,
    form: str | None,
    mtime: int | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Make an archive of a directory, and its digest beside it.

    --out is a file when it ends as an archive does, and else a directory. Directories that are missing are made; one with a dot in
    its name needs a / at its end then.

    The same content gives the same digest. What a host would refuse to unpack is refused: links that lead out, devices, names that
    are not UTF-8.
    """
    from deployd_core.packing import MODIFIED, pack

    archive, form = _archive(directory, build=build, service=service, out=out, form=form)
    packed = pack(directory, archive, form=form, modified=MODIFIED if mtime is None else mtime, replace=replace)
    if as_json:
        body = {"path": packed.path, "digest": packed.digest, "size": int(packed.size), "members": packed.members}
        print_json("deployd.builds.pack/1", body)
        return
    click.echo(f"{packed.path}  {packed.digest}")
    state = "packed" if packed.fresh else "was packed already:"
    size = f"{packed.size / 1e6:.1f} MB" if packed.size >= 1e6 else f"{packed.size / 1e3:.1f} kB"
    message(f"{state} {packed.members} files and directories, {size}; digest in {packed.path.name}.sha256")


def _archive(directory: Path, *, build: str | None, service: str | None, out: str | None, form: str | None) -> tuple[Path, str]:
    """The file to write and its format.

    Raises:
        click.UsageError: What was asked for contradicts itself, or could be either a file or a directory.
    """
    from deployd_core.model import check_build_id, check_name
    from deployd_core.packing import ENDINGS

    place = Path(out or "")
    if place.is_file() or (out is not None and not place.is_dir() and not out.endswith("/") and place.suffix):
        named = next((known for known, ending in ENDINGS.items() if place.name.endswith(ending)), None)
        if named is None:
            endings = ", ".join(ENDINGS.values())
            raise click.UsageError(f"--out {out} is neither a directory nor ends in {endings}; one that is to be made ends in a /.")
        if form not in (None, named):
            raise click.UsageError(f"--out {out} and --format {form} contradict each other.")
        if build or service:
            raise click.UsageError("--out names a file: --build and --service have no say then.")
        return place, named
    form = form or "gz"
    name = check_build_id(build or directory.resolve().name)
    if service:
        name = f"{check_name(service, 'service')}-{name}"
    return place / f"{name}{ENDINGS[form]}", form
