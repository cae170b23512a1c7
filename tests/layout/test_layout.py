"""The shape of the project: rooms, links, who imports whom, and what a wheel holds."""

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("spaces", "evaluators", "workers", "search", "exporters")


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a room's file, from the room on."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL = {module_of(path): path for room in ROOMS for path in sources(room)}


def imports(path: Path) -> Iterator[str]:
    """The modules that a room's file imports, from the room on; `absolute` for what names the package."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level]
            target = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            inside = [f"{target}.{alias.name}" for alias in node.names]
            yield from (name if name in ALL else target for name in inside)
        elif (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paretopress")) or (
            isinstance(node, ast.Import) and any(a.name.startswith("paretopress") for a in node.names)
        ):
            yield "absolute"


def group_of(module: str) -> str:
    """The sub-room of a module; a file that lies in the room itself is one of its own."""
    parts = module.split(".")
    return ".".join(parts[:2])


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_linked_relatively(room: str) -> None:
    link = ROOT / "paretopress" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_to_its_left(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    found = {
        path.name: {n for n in imports(path) if n.split(".")[0] not in allowed} for path in sources(room)
    }
    assert not {name: bad for name, bad in found.items() if bad}


def test_sub_rooms_have_no_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for module, path in ALL.items():
        arrows.setdefault(group_of(module), set()).update(group_of(name) for name in imports(path))
    left = {group: targets - {group} for group, targets in arrows.items()}
    while free := [group for group, targets in left.items() if not targets & left.keys()]:
        for group in free:
            del left[group]
    assert not left


def test_no_two_modules_share_a_name() -> None:
    names = [path.stem for path in (*ALL.values(), *(ROOT / "paretopress").glob("*.py"))]
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= {"__init__", "configuration"}


def test_a_folder_shows_about_fifteen_names() -> None:
    folders = [ROOT / room for room in (*ROOMS, "benchmarks", "tests")]
    folders += [path for folder in folders for path in folder.rglob("*") if path.is_dir()]
    for folder in folders:
        names = {path.name for path in folder.iterdir() if not path.name.startswith("_")}
        assert len(names) <= 17, f"{folder} shows {len(names)} names"


def needs_ray(path: Path) -> bool:
    return path.name.startswith("ray_")


def test_ray_is_imported_only_where_the_name_says_so() -> None:
    found = set()
    for path in [*(ROOT / "paretopress").glob("*.py"), *(p for room in ROOMS for p in sources(room))]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {path for name in names if name.split(".")[0] == "ray"}
    assert found
    assert all(needs_ray(path) for path in found)


@pytest.mark.slow
def test_without_ray_all_else_is_there_and_ray_is_answered_with_its_remedy(tmp_path: Path) -> None:
    names = [f"paretopress.{module}" for module, path in ALL.items() if not needs_ray(path)]
    configuration = str(ROOT / "configs" / "quickstart.yaml")
    program = (
        "import sys; from importlib import import_module; sys.modules['ray'] = None\n"
        f"for name in {names}: import_module(name)\n"
        "from paretopress.cli import main\n"
        "for command in (['search', '--workers', 'ray'], ['submit', '--address', 'http://head:8265']):\n"
        f"    sys.argv[1:] = [*command, {configuration!r}]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [line for line in done.stdout.splitlines() if line.isdecimal()] == ["2", "2"], done.stderr
    assert done.stderr.splitlines() == [
        "paretopress: workers: ray needs ray; pip install 'paretopress[ray]', or use workers: local",
        "paretopress: submit needs ray; pip install 'paretopress[ray]'",
    ]
    assert not list(tmp_path.rglob("*"))


def test_nothing_unpickles_or_runs_text() -> None:
    banned = {"pickle", "dill", "joblib", "shelve", "marshal"}
    for room in ROOMS:
        for path in sources(room):
            tree = ast.parse(path.read_text())
            names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not names & banned, path
            calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
            assert not calls & {"torch.load", "yaml.load", "eval", "exec"}, path


def test_a_wheel_holds_every_module(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"paretopress/{path.relative_to(ROOT).as_posix()}" for path in ALL.values()}
    wanted |= {f"paretopress/{path.name}" for path in (ROOT / "paretopress").glob("*.py")}
    assert wanted | {"paretopress/py.typed"} <= held
    assert not {name.split("/")[0] for name in held} & set(ROOMS)


def test_the_checks_run_what_the_readme_says() -> None:
    readme, checks = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]" && pytest' in readme
    assert 'pip install -e ".[dev]" && pytest' in checks
    assert "pip install -e . && paretopress search configs/quickstart.yaml" in readme
    assert "pip install -e . && paretopress search configs/quickstart.yaml" in checks
