"""The rooms of the package: who may import whom, and what may be known where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import acdc

ROOT = Path(acdc.__file__).parents[1]
# From left to right; a module imports what stands to its left or in its own room.
ROOMS = (
    ("acdc.errors",),
    ("acdc.files", "acdc.settings", "acdc.graph", "acdc.process"),
    ("acdc.circuit",),
    ("acdc.tasks",),
    ("acdc.model", "acdc.ablation", "acdc.metrics"),
    ("acdc.experiment",),
    ("acdc.engine",),
    ("acdc.discovery", "acdc.patching"),
    ("acdc.evaluation",),
    ("acdc.formats",),
    ("acdc.report",),
    ("acdc.journal", "acdc.tracking"),
    ("acdc.jobs", "acdc.sweep", "acdc.help"),
    ("acdc.cli",),
    ("acdc.__main__",),
)
PLACE = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module by the name it is imported under."""
    found = {}
    for folder, package in ((ROOT / "acdc", "acdc"), (ROOT / "tasks", "acdc.tasks")):
        for path in folder.rglob("*.py"):
            if not path.is_relative_to(ROOT / "acdc" / "tasks"):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import of a file, those inside functions too: the module and the function it stands in."""
    tree = ast.parse(path.read_text())
    inside = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            inside |= {id(child): node.name for child in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            source = node.module or ""
            below = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else source for name in below]
        for name in names:
            yield name, inside.get(id(node), "")


def room(module: str) -> str | None:
    return next((room for room in PLACE if module == room or module.startswith(f"{room}.")), None)


def test_every_module_has_its_room() -> None:
    assert {module for module in MODULES if room(module) is None} == {"acdc"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_way_back(module: str) -> None:
    here = room(module)
    for imported, function in imports(MODULES[module]):
        there = room(imported)
        if there is None or here is None or there == here:
            continue
        if (module, function, there) == ("acdc.circuit", "render", "acdc.report"):
            continue  # a convenience for people, out of the way until it is called
        if (module, function, there) == ("acdc.experiment", "_filtered", "acdc.evaluation"):
            continue  # task.filter: which pairs are good is known to the right only
        neighbours = PLACE[there] == PLACE[here]
        assert PLACE[there] <= PLACE[here], f"{module} imports {imported}"
        assert not neighbours or not imports_back(there, here), f"{here} and {there} import each other"


def imports_back(there: str, here: str) -> bool:
    paths = [path for module, path in MODULES.items() if room(module) == there]
    return any(room(imported) == here for path in paths for imported, _ in imports(path))


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("transformer_lens", "acdc.model"),
        ("transformers", "acdc.model"),
        ("wandb", "acdc.tracking"),
        ("hydra", "acdc.cli"),
        ("omegaconf", "acdc.cli"),
        ("graphviz", "acdc.formats"),
        ("pygraphviz", "acdc.report"),
    ],
)
def test_only_one_room_knows(library: str, where: str) -> None:
    knowing = {
        room(module)
        for module, path in MODULES.items()
        for imported, _ in imports(path)
        if imported.partition(".")[0] == library
    }
    assert knowing == {where}


def test_tasks_see_no_torch() -> None:
    for module, path in MODULES.items():
        if room(module) == "acdc.tasks":
            assert not [name for name, _ in imports(path) if name.partition(".")[0] in ("torch", "numpy")], module


@pytest.mark.parametrize(
    "module", ["acdc", "acdc.graph", "acdc.circuit", "acdc.tasks", "acdc.journal", "acdc.help", "acdc.cli"]
)
def test_light_modules_bring_no_torch(module: str) -> None:
    heavy = ("torch", "transformers", "transformer_lens", "wandb", "matplotlib")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_names_are_loaded_when_they_are_used() -> None:
    program = (
        "import sys, acdc; assert set(acdc.__all__) <= set(dir(acdc)); acdc.Circuit; acdc.Graph; "
        "print('torch' in sys.modules); acdc.Experiment; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_nothing_installed_points_to_pages_that_are_not() -> None:
    """docs/ and the repository's README stay behind when the package is installed; help and docstrings say it all."""
    files = [*(ROOT / "acdc").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    assert len(files) > 150
    assert not [path for path in files if "docs/" in path.read_text()]
