"""What all tests share. The hub is closed before anything imports a Hugging Face library."""

from __future__ import annotations

import os
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores, so a thread each, in their own processes too
    os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import hypothesis
import pytest
from jaxtyping import config as axes
from jaxtyping import install_import_hook

# Types and axes of tensors can be checked in every call of these rooms, which must not have been imported before.
install_import_hook(("acdc.engine", "acdc.model"), "beartype.beartype")

hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that stands beside the repository; tests that need it are skipped where it is missing."""
    path = Path(__file__).parents[1] / "../shared"
    if not path.is_dir():
        pytest.skip("needs ../shared beside the repository")
    return path.resolve()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def axes_are_checked(request: pytest.FixtureRequest) -> None:
    """In every eighth test, always the same ones: in all of them it would double the time."""
    axes.update("jaxtyping_disable", zlib.crc32(request.node.nodeid.encode()) % 8 > 0)
