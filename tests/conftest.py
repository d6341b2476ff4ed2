"""What all tests share. The hub is closed before anything imports a Hugging Face library."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores, so a thread each, in their own processes too
    os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import hypothesis
import pytest

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
