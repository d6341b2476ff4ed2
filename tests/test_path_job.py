"""`job=patch patch=path`, tried the way a user would; and the option of a group that a key alone chooses."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import Case, as_process, assert_refused, make_case, read_json
from matplotlib import image

from acdc import Experiment, patch
from acdc.cli import run
from acdc.report.patch.path import levels_tree

COLUMNS = ["senders", "receivers", "through", "position", "direction", "recovery", "std", "n", "effect", "metric"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "patch.csv").open() as file:
        return list(csv.DictReader(file))


def drawn_text(path: Path) -> list[str]:
    """The texts of a plot: matplotlib writes each as a comment beside its outlines."""
    ElementTree.parse(path)
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_who_feeds_the_logits(here: Path) -> None:
    done = as_process("job=patch", "patch.from=logits", "patch.depth=3", "task.size=8", "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    folder = here / "out"
    rows = rows_of(folder)
    assert list(rows[0]) == ["level", *COLUMNS]
    same = patch(Experiment.build(task="ioi", size=8), "path", from_="logits", depth=3)
    for row, theirs in zip(rows, same.rows(), strict=True):
        fixed = ["level", "senders", "receivers", "through", "position", "direction", "n"]
        assert [row[key] for key in fixed] == [str(theirs[key]) for key in fixed]
        assert float(row["effect"]) == pytest.approx(theirs["effect"], abs=1e-5)
        assert float(row["effect"]) == pytest.approx(1 - float(row["recovery"]))
    pictures = ["levels_noise", *(f"paths_noise_level{level}" for level in (1, 2, 3))]
    names = {f"{name}.{kind}" for name in pictures for kind in ("svg", "png")}
    names |= {"patch.csv", "patch.npz", "report.html", "metrics.json", "run.json", "run.log", "resolved.yaml", ".hydra"}
    assert {path.name for path in folder.iterdir()} == names
    metrics = read_json(folder / "metrics.json")
    best = max((row for row in rows if row["level"] == "2"), key=lambda row: abs(float(row["effect"])))
    assert metrics["noise_level2_strongest"] == f"{best['senders']}->{best['receivers']}"
    followed = metrics["noise_level1_followed"].split(", ")
    assert {re.sub("<.>", "", row["receivers"]) for row in rows if row["level"] == "2"} == set(followed)

    # The graph has an edge for every path from the limit on, and no other.
    expected = {f"{r['senders']}->{r['receivers']}" for r in rows if abs(float(r["effect"])) >= 0.02}
    svg = ElementTree.parse(folder / "levels_noise.svg")
    titles = [link.get("{http://www.w3.org/1999/xlink}title", "") for link in svg.iter("{http://www.w3.org/2000/svg}a")]
    assert {title.split()[0] for title in titles if "effect" in title} == expected
    page = (folder / "report.html").read_text()
    assert "Who feeds logits?" in page
    for level in (1, 2, 3):
        assert base64.b64encode((folder / f"paths_noise_level{level}.svg").read_bytes()).decode() in page

    # The tree on the console: every path from the limit on below the first node that stands for its receiver.
    lines = done.stdout.splitlines()
    assert lines[0] == "Who feeds logits, noise: |effect| from 0.02"
    first = sorted((r for r in rows if r["level"] == "1"), key=lambda r: -abs(float(r["effect"])))
    branches = [line[4:] for line in lines if line.startswith(("├── ", "└── "))]
    strong = [r for r in first if abs(float(r["effect"])) >= 0.02]
    assert branches == [f"{r['senders']}  {float(r['effect']):.3f}" for r in strong]
    total = sum("─ " in line for line in lines)
    assert total == sum(abs(float(r["effect"])) >= 0.02 for r in rows)
    assert levels_tree(same, "noise").label.plain == lines[0]


def test_ports_need_no_quotes(case: Case, here: Path) -> None:
    some = case.arguments(job="patch", patch="path", patch__sweep="senders")
    assert run([*some, "patch.receivers=[a1.h1<q>,a1.h0<k>,m1]", "hydra.run.dir=plain"]) == 0
    assert run([*some, "patch.receivers=['a1.h1<q>',\"a1.h0<k>\",m1]", "hydra.run.dir=quoted"]) == 0
    plain = rows_of(here / "plain")
    assert {row["receivers"] for row in plain} == {"a1.h1<q>+a1.h0<k>+m1"}
    assert rows_of(here / "quoted") == plain


def test_a_sweep_in_both_directions(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch="path", patch__senders="heads", patch__receivers="[logits,a1.h0]")
    options = ["patch.through=mlps", "patch.positions=[1,-1]", "patch.direction=both", "hydra.run.dir=out"]
    assert run([*arguments, *options]) == 0
    folder = here / "out"
    rows = rows_of(folder)
    assert list(rows[0]) == COLUMNS
    assert {(row["through"], row["position"]) for row in rows} == {("mlps", "1,3")}
    paths = [("logits", f"a{i}.h{h}") for i in range(2) for h in range(2)] + [("a1.h0", f"a0.h{h}") for h in range(2)]
    assert [(row["receivers"], row["senders"]) for row in rows] == 2 * paths
    arrays = np.load(folder / "patch.npz")
    for direction in ("noise", "denoise"):
        mine = [float(row["recovery"]) for row in rows if row["direction"] == direction]
        assert arrays[direction].tolist() == pytest.approx(mine)
        assert arrays[f"{direction}_pairs"].mean(-1).tolist() == pytest.approx(mine)
        assert arrays[f"{direction}_receivers"].tolist() == [receiver for receiver, _ in paths]
        # Every effect stands in its cell.
        effects = {(r["receivers"], r["senders"]): float(r["effect"]) for r in rows if r["direction"] == direction}
        digits = 2 if max(map(abs, effects.values())) >= 0.1 else 3
        texts = drawn_text(folder / f"paths_{direction}.svg")
        for receiver in ("logits", "a1.h0"):
            shown = [e for (r, _), e in effects.items() if r == receiver]
            cells = [f"{e:.{digits}f}".replace("-", "−") if abs(e) >= 0.5 * 10**-digits else "0" for e in shown]
            assert f"→ {receiver}" in texts
            assert " ".join(cells) in " ".join(texts), (cells, texts)
        assert image.imread(folder / f"paths_{direction}.png").shape[2] == 4
        assert "MLPs in between respond" in (folder / "report.html").read_text()
    metrics = read_json(folder / "metrics.json")
    assert (metrics["paths"], metrics["pairs"]) == (12, 3)


def test_one_path_and_a_sweep_of_receivers(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch__senders="[a0.h1,input]")
    assert run([*arguments, "patch.sweep=none", "hydra.run.dir=one"]) == 0
    assert [(row["senders"], row["receivers"]) for row in rows_of(here / "one")] == [("a0.h1+input", "logits")]
    assert not list((here / "one").glob("*.svg"))  # there is nothing to compare
    assert run([*arguments, "patch.sweep=receivers", "patch.receivers=null", "hydra.run.dir=two"]) == 0
    texts = drawn_text(here / "two" / "paths_noise.svg")
    assert {"a0.h1+input →", "q0", "v1", "mlp", "logits"} <= set(texts)
    assert len(rows_of(here / "two")) == 15  # every port


# A key chooses the option.


def chosen(here: Path, *arguments: str) -> str:
    done = as_process("--cfg", "job", "--package", "patch", *arguments, cwd=here)
    assert done.returncode == 0, done.stderr
    return re.search(r"^name: (\w+)$", done.stdout, re.MULTILINE)[1]  # type: ignore[index]


def test_a_key_chooses_the_only_option_that_has_it(here: Path) -> None:
    assert chosen(here, "patch.from=logits", "patch.direction=both") == "path"
    assert chosen(here, "patch.direction=both") == "activation"
    folder = here / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /patch: path\n")
    assert chosen(here, "--config-dir", "own", "experiment=mine", "patch.positions=[1]") == "path"


def test_a_key_of_several_options_chooses_none(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = here / "own" / "patch"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: path\nfrom: null\n")
    said = "patch.from is of patch=path, patch=mine: choose one"
    assert_refused(["--config-dir", "own", "job=patch", "patch.from=logits"], capfd, said)
    assert chosen(here, "--config-dir", "own", "patch.from=logits", "patch.width=2") == "path"


def test_a_key_chooses_in_a_sweep_too(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(job="patch", patch__from="logits,m1", patch__depth=1)
    assert run(["-m", *arguments, "hydra.sweep.dir=sweep"]) == 0
    receivers = [{row["receivers"] for row in rows_of(here / "sweep" / run_)} for run_ in ("0", "1")]
    assert receivers == [{"logits"}, {"m1"}]
    said = capfd.readouterr().out  # and the table of the sweep says what came out
    assert "strongest" in said
    for run_ in ("0", "1"):
        assert read_json(here / "sweep" / run_ / "metrics.json")["noise_level1_strongest"] in said
