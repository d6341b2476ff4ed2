"""What importing the package brings, and what it needs. Who may import whom is checked by `make lint`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import acdc

ROOT = Path(acdc.__file__).parents[1]
_NAMES_OF_ALL = [
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
    for folder, package in ((ROOT / "acdc", "acdc"), (ROOT / "tasks", "acdc.tasks"))
    for path in folder.rglob("*.py")
    if path.stem not in ("__main__", "_layout")  # programs
]


def test_every_module_can_be_imported_where_extras_and_posix_are_missing() -> None:
    blocked = ("fcntl", "resource", "wandb", "joblib", "hydra_plugins.hydra_joblib_launcher", "pygraphviz")
    program = (
        "import importlib, sys, psutil\n"  # which needs them itself where they are
        f"for name in {blocked}: sys.modules[name] = None\n"
        f"for name in {_NAMES_OF_ALL}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["acdc", "acdc.graph", "acdc.circuit", "acdc.tasks", "acdc.journal", "acdc.cli"])
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
