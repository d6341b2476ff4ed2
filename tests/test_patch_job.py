"""`job=patch`, tried the way a user would: its files, its pictures and its page."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import PAIRS, Case, as_process, assert_refused, make_case, read_json
from matplotlib import image

from acdc import Experiment, patch
from acdc.cli import run
from acdc.patching.activation_result import CLASSES

COLUMNS = ["site", "layer", "head", "position", "direction", "recovery", "std", "n", "subset"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Pairs of three lengths with labels."""
    case = make_case(tmp_path_factory.mktemp("case"))
    for i, length in enumerate((4, 5, 6)):
        extra = [7, 3][: length - 4]
        pair = {**PAIRS[i], "labels": {"first": 0, "words": [1, 3], "end": -1}}
        pair |= {"clean": [*pair["clean"], *extra], "corrupted": [*pair["corrupted"], *extra]}
        with (case.pairs.parent / "labelled.jsonl").open("a") as file:
            file.write(json.dumps(pair) + "\n")
    return case


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "patch.csv").open() as file:
        return list(csv.DictReader(file))


def drawn_text(path: Path) -> list[str]:
    """The texts of a picture: matplotlib writes each as a comment beside its outlines."""
    ElementTree.parse(path)
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_the_command_of_the_readme(here: Path) -> None:
    arguments = ("job=patch", "task=ioi", "patch.site=head_output", "patch.direction=denoise")
    done = as_process(*arguments, "task.size=8", "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The sites that matter most" in done.stdout
    assert done.stdout.endswith(f"report               {here / 'out' / 'report.html'}\n")
    names = {"patch.csv", "patch.npz", "head_output_denoise.svg", "head_output_denoise.png", "report.html"}
    assert {path.name for path in (here / "out").iterdir()} == {
        *names,
        "metrics.json",
        "run.json",
        "run.log",
        "resolved.yaml",
        ".hydra",
    }
    rows = rows_of(here / "out")
    assert list(rows[0])[:9] == COLUMNS
    assert [(row["layer"], row["head"]) for row in rows] == [(str(i), str(j)) for i in range(4) for j in range(4)]
    same = patch(Experiment.build(task="ioi", size=8), site="head_output", direction="denoise")
    for row, theirs in zip(rows, same.rows(), strict=True):
        assert float(row["recovery"]) == pytest.approx(theirs["recovery"], abs=1e-5)
        fixed = [row[key] for key in ("site", "position", "direction", "n", "subset", "class")]
        assert fixed == ["head_output", "", "denoise", "8", "", ""]
    metrics = read_json(here / "out" / "metrics.json")
    assert (metrics["clean"], metrics["corrupted"]) == pytest.approx((same.clean, same.corrupted), abs=1e-4)
    assert (metrics["sites"], metrics["pairs"]) == (16, 8)
    best = max(rows, key=lambda row: abs(float(row["recovery"])))
    assert metrics["head_output_denoise_strongest"] == f"a{best['layer']}.h{best['head']}"


def test_a_narrow_terminal_breaks_no_word(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch__site="resid_pre", patch__necessary_from=0, patch__sufficient_from=0)
    done = as_process(*arguments, "hydra.run.dir=out", cwd=here, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert "necessary and" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:20])) <= 80


def test_the_strongest_site_may_be_one_that_hinders(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch__site="[head_output,q,k,v,resid_mid]")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    metrics = read_json(here / "out" / "metrics.json")
    names = [key.removesuffix("_strongest") for key in metrics if key.endswith("_strongest")]
    found = []
    for name in names:
        site, _, direction = name.rpartition("_")
        mine = [row for row in rows_of(here / "out") if (row["site"], row["direction"]) == (site, direction)]
        effects = [float(row["recovery"]) - (direction == "noise") for row in mine]
        best = max(range(len(mine)), key=lambda i: abs(effects[i]))
        assert metrics[f"{name}_recovery"] == pytest.approx(float(mine[best]["recovery"]))
        found.append(effects[best] * (-1 if direction == "noise" else 1))
    assert len(found) == 10
    assert min(found) < 0 < max(found)


def test_both_directions_by_label(case: Case, here: Path) -> None:
    options = {"job": "patch", "task__path": case.pairs.parent / "labelled.jsonl", "patch__site": "[resid_pre,q]"}
    arguments = case.arguments(**options, patch__by="position", patch__positions="[words,end]", patch__layers="[1]")
    limits = ["patch.sufficient_from=0.5", "patch.necessary_from=0.25"]
    assert run([*arguments, *limits, "hydra.run.dir=out"]) == 0
    folder = here / "out"
    rows = rows_of(folder)
    assert [row["position"] for row in rows] == 4 * ["words", "end"]
    assert {row["subset"] for row in rows} == {"layers=1 positions=words,end"}
    by_site: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        by_site.setdefault((row["site"], row["position"]), {})[row["direction"]] = row
    for both in by_site.values():
        sufficient = float(both["denoise"]["recovery"]) >= 0.5
        necessary = 1 - float(both["noise"]["recovery"]) >= 0.25
        assert both["noise"]["class"] == both["denoise"]["class"] == CLASSES[necessary, sufficient]
    arrays = np.load(folder / "patch.npz")
    for site in ("resid_pre", "q"):
        for direction in ("noise", "denoise"):
            mine = [float(r["recovery"]) for r in rows if (r["site"], r["direction"]) == (site, direction)]
            assert arrays[f"{site}_{direction}"].flatten().tolist() == pytest.approx(mine)
            assert arrays[f"{site}_{direction}_pairs"].shape == (1, 1, 2, 3)
            assert arrays[f"{site}_{direction}_pairs"].mean(-1).flatten().tolist() == pytest.approx(mine)
        assert arrays[f"{site}_places"].tolist() == ["words", "end"]
    page = (folder / "report.html").read_text()
    pictures = [f"{site}_{what}" for site in ("resid_pre", "q") for what in ("noise", "denoise", "classes")]
    assert {path.stem for path in folder.glob("*.png")} == set(pictures) == {path.stem for path in folder.glob("*.svg")}
    for name in pictures:
        assert base64.b64encode((folder / f"{name}.svg").read_bytes()).decode() in page
        assert image.imread(folder / f"{name}.png").shape[2] == 4
    metrics = read_json(folder / "metrics.json")
    assert sum(metrics[name] for name in CLASSES.values()) == 4


def test_maps_show_what_the_table_says(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch__by="head_position")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    for direction in ("noise", "denoise"):
        texts = drawn_text(here / "out" / f"head_output_{direction}.svg")
        importance = []
        for row in rows_of(here / "out"):
            if row["direction"] == direction:
                value = float(row["recovery"])
                importance.append(value if direction == "denoise" else 1 - value)
        shown = [f"{v:.2f}".replace("-", "−") if abs(v) >= 0.005 else "0" for v in importance]
        start = len(texts) - len(shown) - 1  # behind the axes' labels, before the title or the colour bar
        assert any(texts[i : i + len(shown)] == shown for i in range(start + 1)), texts
        assert {"a0.h0", "a1.h1", "0 2…", "2 7…"} <= set(texts)
        # White is no effect: the colour bar is symmetric, and its middle is white.
        picture = image.imread(here / "out" / f"head_output_{direction}.png")[..., :3]
        assert (abs(picture - np.array([0.97, 0.97, 0.97])).max(-1) < 0.01).any()


def test_pairs_that_differ_in_length_need_labels(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = [PAIRS[0], {**PAIRS[1], "clean": [4, 5, 1], "corrupted": [4, 3, 1]}]
    (here / "mixed.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = case.arguments(job="patch", task__path="mixed.jsonl", patch__site="resid_pre")
    assert_refused([*arguments, "hydra.run.dir=out"], capfd, "the pairs have 3 to 4 tokens and share no labels")
    assert_refused([*arguments, "patch.positions=-1", "hydra.run.dir=out"], capfd, "an index is not the same place")
    assert not (here / "out").exists()
    assert run([*arguments, "patch.site=k", "hydra.run.dir=out"]) == 0  # whole prompts need none


def test_a_killed_sweep_begins_again(case: Case, here: Path) -> None:
    assert run([*case.arguments(job="patch"), "hydra.run.dir=out"]) == 0
    before = (here / "out" / "patch.csv").read_bytes(), (here / "out" / "head_output_noise.svg").read_bytes()
    for name in ("run.json", "patch.csv", "head_output_noise.svg"):
        (here / "out" / name).unlink()
    assert run(["resume=out"]) == 0
    assert ((here / "out" / "patch.csv").read_bytes(), (here / "out" / "head_output_noise.svg").read_bytes()) == before
