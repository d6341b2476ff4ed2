"""`job=patch patch=sae`, tried the way a user would: its files, its pictures and its page."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from commands import Case, as_process, assert_refused, make_case, read_json
from matplotlib import image
from safetensors.torch import save_file

from acdc import Experiment, patch
from acdc.cli import run

COLUMNS = ["feature", "site", "layer", "position", "direction", "recovery", "std", "n", "subset", "label", "effect"]
COLUMNS += ["attribution", "rank_effect", "rank_attribution", "metric", "activation", "tokens"]
PICTURES = {f"{what}_{direction}" for what in ("features", "attribution") for direction in ("noise", "denoise")}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A random model, with an autoencoder beside it that fits it badly."""
    case = make_case(tmp_path_factory.mktemp("case"))
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (8, 12), "b_enc": (12,), "W_dec": (12, 8), "b_dec": (8,)}
    folder = case.pairs.parent / "sae"
    folder.mkdir()
    save_file({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"kind": "relu", "hook": "resid_post", "layer": 0}))
    return case


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "patch.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_bundled_one_on_ioi(here: Path) -> None:
    arguments = ("job=patch", "patch=sae", "task=ioi", "task.size=4", "hydra.run.dir=out")
    done = as_process(*arguments, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("features active", "variance explained", "loss recovered", "The features that matter most"):
        assert said in done.stdout
    assert done.stdout.endswith(f"report               {here / 'out' / 'report.html'}\n")
    folder = here / "out"
    pictures = {f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png")}
    assert {path.name for path in folder.iterdir()} == {
        *pictures, "patch.csv", "patch.npz", "report.html", "metrics.json", "run.json", "run.log", "resolved.yaml",
        ".hydra",
    }  # fmt: skip
    rows, same = rows_of(folder), patch(Experiment.build(task="ioi", size=4), "sae")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 2 * len(same.reconstruction.active)
    for row, theirs in zip(rows, same.rows(), strict=True):
        for key in ("recovery", "effect", "attribution", "activation"):
            assert float(row[key]) == pytest.approx(theirs[key], abs=1e-4)
        fixed = [row[key] for key in ("feature", "site", "layer", "position", "direction", "n", "subset")]
        assert fixed == [str(theirs["feature"]), "resid_post", "1", "", theirs["direction"], "4", ""]
    arrays = np.load(folder / "patch.npz")
    for direction in ("noise", "denoise"):
        mine = [row for row in rows if row["direction"] == direction]
        assert arrays["features"].tolist() == [int(row["feature"]) for row in mine]
        assert arrays[direction].flatten().tolist() == pytest.approx([float(row["recovery"]) for row in mine])
        assert arrays[f"{direction}_pairs"].shape == (len(mine), 1, 4)
        assert arrays[f"{direction}_attribution"][:, 0].tolist() == pytest.approx(
            [float(row["attribution"]) for row in mine]
        )
    metrics = read_json(folder / "metrics.json")
    assert (metrics["features"], metrics["active"], metrics["pairs"]) == (512, len(rows) // 2, 4)
    assert 0.8 < metrics["explained"] < 1
    assert 0.8 < metrics["spliced_recovery"] < 1.2
    assert metrics["denoise_rank_correlation"] > 0.8
    best = max((row for row in rows if row["direction"] == "denoise"), key=lambda row: float(row["effect"]))
    assert metrics["denoise_recovery"] == pytest.approx(float(best["recovery"]))
    page = (folder / "report.html").read_text()
    assert "Please note" not in page
    assert f"<td>{best['feature']}</td>" in page
    for name in PICTURES:
        assert base64.b64encode((folder / f"{name}.svg").read_bytes()).decode() in page
        assert image.imread(folder / f"{name}.png").shape[2] == 4
    ElementTree.parse(folder / "features_denoise.svg")
    drawn = re.findall(r"<!-- (.*?) -->", (folder / "features_denoise.svg").read_text())
    assert any(text.startswith(f"{best['feature']}  ") for text in drawn)


def test_a_folder_that_fits_badly(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = {
        "job": "patch",
        "patch": "sae",
        "patch__path": case.pairs.parent / "sae",
        "patch__by": "feature_position",
    }
    assert run([*case.arguments(**options), "patch.positions=[2,-1]", "patch.most=3", "hydra.run.dir=out"]) == 0
    folder = here / "out"
    out = capfd.readouterr().out
    assert "note: the autoencoder explains" in out
    assert "its features miss much of what the model does here" in (folder / "report.html").read_text()
    rows = rows_of(folder)
    assert [row["position"] for row in rows] == 6 * ["2", "3"]
    assert {row["subset"] for row in rows} == {"most=3 positions=2,-1"}
    assert read_json(folder / "metrics.json")["patched"] == 3


def test_features_without_effect_are_said_to_have_none(case: Case, here: Path) -> None:
    done = as_process("job=patch", "patch=sae", "task.size=1", "patch.features=12", "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    assert "note: noise: none of the patched features has any effect" in words
    page = (here / "out" / "report.html").read_text()
    assert "denoise: none of the patched features has any effect" in page
    assert {path.stem for path in (here / "out").glob("*.png")} == {"attribution_noise", "attribution_denoise"}


def test_no_attribution_where_the_metric_is_smallest(case: Case, here: Path) -> None:
    options = {"job": "patch", "patch": "sae", "patch__path": case.pairs.parent / "sae", "metric": "kl_div"}
    assert run([*case.arguments(**options), "hydra.run.dir=out"]) == 0
    assert {row["attribution"] for row in rows_of(here / "out") if row["direction"] == "noise"} == {""}
    assert {path.stem for path in (here / "out").glob("*.png")} == PICTURES - {"attribution_noise"}
    assert read_json(here / "out" / "metrics.json")["noise_rank_correlation"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch__path": "nothing"}, "nothing is not the folder of a sparse autoencoder: it has no sae.safetensors"),
        (
            {"patch__sae": "gpt2-small-res-jb"},
            "patch.sae=gpt2-small-res-jb is not known: choose pocket, give a release",
        ),
        ({}, "the autoencoder pocket reads 128 dimensions, but"),
        ({"patch__most": "some"}, "patch.most=some is not allowed: give a whole number or null"),
        ({"patch__site": "q"}, "patch.site does not exist; patch has name, sae, path"),
    ],
)
def test_wrong_input_is_one_line(
    options: dict[str, str], said: str, case: Case, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = case.arguments(job="patch", patch="sae", **options)
    assert_refused([*arguments, "hydra.run.dir=out"], capfd, said)
    assert not (here / "out").exists()
