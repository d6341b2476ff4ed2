"""`job=patch patch=ablation`, tried the way a user would: its files, its pictures and its page."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import PAIRS, Case, as_process, assert_refused, make_case, read_json
from matplotlib import image

from acdc import Experiment, patch
from acdc.cli import run

OPTIONS = {"job": "patch", "patch": "ablation"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_what_python_finds(here: Path) -> None:
    arguments = ("job=patch", "patch=ablation", "task=ioi", "task.size=6", "patch.orders=2")
    done = as_process(*arguments, "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The sites that matter most" in done.stdout
    assert "area under the knock-out curve: effect" in done.stdout
    assert done.stdout.endswith(f"report               {here / 'out' / 'report.html'}\n")
    pictures = {"head_output_effect", "knockout", "backup_1", "backup_2", "backup_3", "interactions"}
    tables = {"patch.csv", "knockout.csv", "backup.csv", "additivity.csv"}
    names = {f"{name}.{kind}" for name in pictures for kind in ("svg", "png")} | tables
    names |= {"patch.npz", "metrics.json", "report.html", "run.json", "run.log", "resolved.yaml", ".hydra"}
    assert {path.name for path in (here / "out").iterdir()} == names
    same = patch(Experiment.build(task="ioi", size=6), "ablation", orders=2)
    found = {"patch": same.rows(), "knockout": same.curve_rows(), "backup": same.backup_rows()}
    for name, theirs in {**found, "additivity": same.additivity_rows()}.items():
        rows = table(here / "out" / f"{name}.csv")
        assert list(rows[0]) == list(theirs[0])
        for row, expected in zip(rows, theirs, strict=True):
            for key, value in expected.items():
                if isinstance(value, float):
                    assert float(row[key]) == pytest.approx(value, abs=1e-4, rel=1e-3)
                else:
                    assert row[key] == ("" if value is None else str(value))
    arrays = np.load(here / "out" / "patch.npz")
    effects = [row["effect"] for row in same.rows()]
    assert arrays["head_output_effect"].flatten().tolist() == pytest.approx(effects, abs=1e-4)
    assert arrays["knockout_ranked"].shape == (17, 6)
    assert arrays["backup_after"].shape == (3, 20, 6)
    metrics = read_json(here / "out" / "metrics.json")
    assert (metrics["sites"], metrics["pairs"]) == (16, 6)
    best = max(same.rows(), key=lambda row: row["effect"])
    assert (metrics["strongest"], metrics["strongest_effect"]) == (
        best["name"],
        pytest.approx(best["effect"], abs=1e-4),
    )
    page = (here / "out" / "report.html").read_text()
    for name in pictures:
        assert base64.b64encode((here / "out" / f"{name}.svg").read_bytes()).decode() in page
        assert image.imread(here / "out" / f"{name}.png").shape[2] == 4


def test_several_kinds_in_a_given_order(case: Case, here: Path) -> None:
    arguments = case.arguments(**OPTIONS, patch__site="[head_output,mlp_out]", patch__positions="[1,-1]")
    more = ['patch.order=["head_output:1.h0@1,3","mlp_out:0@1"]', "patch.ranking=given", "patch.value=zero"]
    more += ["patch.backup=0", 'patch.additivity=["mlp_out:0@1","mlp_out:1@3"]', "patch.orders=0"]
    assert run([*arguments, *more, "hydra.run.dir=out"]) == 0
    assert [row["last"] for row in table(here / "out" / "knockout.csv")] == ["", "head_output:a1.h0@1,3", "mlp_out:0@1"]
    rows = table(here / "out" / "patch.csv")
    assert [row["name"] for row in rows][:2] == ["head_output:a0.h0@1,3", "head_output:a0.h1@1,3"]
    assert {row["subset"] for row in rows} == {"positions=1,-1"}
    (both,) = table(here / "out" / "additivity.csv")
    assert both["sites"] == "mlp_out:0@1 mlp_out:1@3"
    single = {row["name"]: float(row["effect"]) for row in rows}
    assert float(both["sum"]) == pytest.approx(single["mlp_out:0@1"] + single["mlp_out:1@3"])
    assert not (here / "out" / "backup.csv").exists()
    assert not list((here / "out").glob("backup*"))


def test_a_ranking_from_another_run(case: Case, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([*case.arguments(job="patch"), "hydra.run.dir=first"]) == 0
    arguments = case.arguments(**OPTIONS, patch__ranking="first/patch.csv", patch__additivity=0, patch__backup=0)
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    denoised = [row for row in table(here / "first" / "patch.csv") if row["direction"] == "denoise"]
    denoised.sort(key=lambda row: -float(row["recovery"]))
    rows = [row for row in table(here / "out" / "knockout.csv") if row["ranking"] == "patch.csv"]
    assert [row["last"] for row in rows[1:]] == [f"a{row['layer']}.h{row['head']}" for row in denoised]
    before = (here / "out" / "knockout.csv").read_bytes()
    (here / "out" / "run.json").unlink()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert run(["resume=../out"]) == 0  # the file is found from anywhere
    assert (here / "out" / "knockout.csv").read_bytes() == before


def test_that_there_is_no_backup_to_look_at_is_said(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(**OPTIONS, patch__site="resid_post", patch__ranking="null", patch__additivity=0)
    said = "none of the sites has both a direct effect on the logits and a head or MLP behind it"
    for count, expected in ((1, True), (0, False)):
        assert run([*arguments, f"patch.backup={count}", f"hydra.run.dir=out{count}"]) == 0
        texts = [capfd.readouterr().out, (here / f"out{count}" / "report.html").read_text()]
        assert [said in " ".join(text.split()) for text in texts] == [expected, expected]


def test_one_pair_of_each_length(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = [PAIRS[0], {**PAIRS[1], "clean": [4, 5, 1], "corrupted": [4, 3, 1]}]
    (here / "mixed.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = [*case.arguments(**OPTIONS, task__path="mixed.jsonl"), "hydra.run.dir=out"]
    assert_refused([*arguments, "patch.value=resample"], capfd, "there is no other of its length")
    assert_refused([*arguments, "patch.value=mean_by_position"], capfd, "have 3 to 4 tokens and no labels")
    assert_refused([*arguments, "patch.order=[0.h0]"], capfd, "patch.order has no effect with patch.ranking=effect")
    assert_refused([*arguments, "patch.ranking=none.csv"], capfd, "none.csv cannot be read")
    assert_refused([*arguments, "patch.backup=all"], capfd, "patch.backup=all is not allowed")
    assert not (here / "out").exists()
    assert run([*arguments, "metric=kl_div"]) == 0
    assert len(table(here / "out" / "patch.csv")) == 4
