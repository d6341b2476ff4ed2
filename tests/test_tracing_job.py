"""`job=patch patch=tracing`, tried the way a user would: its files, its pictures and its page."""

from __future__ import annotations

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

COLUMNS = ["site", "layer", "window", "position", "recovery", "effect", "se", "std", "n", "draws"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Pairs with subjects of one and two tokens."""
    case = make_case(tmp_path_factory.mktemp("case"))
    lines = [{**pair, "subject": [1, 2 + i % 2], "labels": {"first": 0}} for i, pair in enumerate(PAIRS)]
    case.pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return case


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "patch.csv").open() as file:
        return list(csv.DictReader(file))


def drawn_text(path: Path) -> list[str]:
    """The texts of a picture: matplotlib writes each as a comment beside its outlines."""
    ElementTree.parse(path)
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_the_command_of_the_docs(here: Path) -> None:
    arguments = ("job=patch", "patch=tracing", "task=factual_recall", "patch.draws=3", "task.size=6")
    done = as_process(*arguments, "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The states that bring back most" in done.stdout
    assert done.stdout.endswith(f"report               {here / 'out' / 'report.html'}\n")
    pictures = {
        f"{name}.{kind}" for name in ("resid_post", "mlp_out", "attn_out", "by_layer") for kind in ("svg", "png")
    }
    names = {"patch.csv", "patch.npz", "report.html", "metrics.json", "run.json", "run.log", "resolved.yaml", ".hydra"}
    assert {path.name for path in (here / "out").iterdir()} == names | pictures
    rows = rows_of(here / "out")
    assert list(rows[0])[:10] == COLUMNS
    same = patch(Experiment.build(task="factual_recall", size=6), "tracing", draws=3)
    for row, theirs in zip(rows, same.rows(), strict=True):
        for key in ("recovery", "effect", "se"):
            assert float(row[key]) == pytest.approx(theirs[key], abs=1e-4)
        assert [row["site"], row["layer"], row["position"]] == [
            theirs["site"],
            str(theirs["layer"]),
            theirs["position"],
        ]
    metrics = read_json(here / "out" / "metrics.json")
    assert metrics["total_effect"] == pytest.approx(metrics["clean"] - metrics["noised"])
    assert (metrics["pairs"], metrics["draws"], metrics["states"]) == (6, 3, len(rows))
    best = max((row for row in rows if row["site"] == "mlp_out"), key=lambda row: float(row["recovery"]))
    assert metrics["mlp_out_strongest"] == f"{best['layer']} @{best['label']}"
    assert metrics["mlp_out_recovery"] == pytest.approx(float(best["recovery"]))
    page = (here / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "Causal tracing · factual_recall · pocket" in page


def test_pictures_show_the_table(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch="tracing", patch__by="position", patch__draws=2, patch__window=2)
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    rows = rows_of(here / "out")
    assert {(row["site"], row["window"]) for row in rows} == {("resid_post", "1"), ("mlp_out", "2"), ("attn_out", "2")}
    for site in ("resid_post", "mlp_out", "attn_out"):
        shown = []
        for position in "0123":
            for row in rows:
                if (row["site"], row["position"]) == (site, position):
                    value, error = float(row["recovery"]), abs(float(row["se"]) / float(row["total_effect"]))
                    shown.append(f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0")
                    shown += [f"±{error:.2f}"] if error >= 0.005 else []
        texts = " ".join(drawn_text(here / "out" / f"{site}.svg"))
        assert " ".join(shown) in " ".join(texts.split()), (shown, texts)
        assert "1 5…*" in texts
        assert "2 7…*" in texts
        picture = image.imread(here / "out" / f"{site}.png")[..., :3]
        assert (abs(picture - np.array([0.97, 0.97, 0.97])).max(-1) < 0.01).any()  # white is no effect
    assert "total effect" in " ".join(drawn_text(here / "out" / "by_layer.svg"))
    arrays = np.load(here / "out" / "patch.npz")
    effects = arrays["mlp_out_effect"].flatten().tolist()
    assert effects == pytest.approx([float(row["effect"]) for row in rows if row["site"] == "mlp_out"])
    assert (arrays["mlp_out_pairs"].shape, arrays["noised"].shape) == ((2, 4, 3), (2, 3))
    assert arrays["subject"].tolist() == [[1, 2], [1, 3], [1, 2]]


def test_one_pair_has_no_standard_error(case: Case, here: Path) -> None:
    (here / "one.jsonl").write_text(case.pairs.read_text().split("\n")[0])
    arguments = case.arguments(job="patch", patch="tracing", task__path="one.jsonl", patch__draws=1)
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    assert {(row["se"], row["std"], row["n"]) for row in rows_of(here / "out")} == {("", "", "1")}
    assert "±" not in "".join(drawn_text(here / "out" / "mlp_out.svg"))
    assert read_json(here / "out" / "metrics.json")["mlp_out_se"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("task.path=none.jsonl", "names none, so set patch.subject: give indices from 0 to 3"),
        ("patch.subject=thing", "patch.subject=thing is not a position"),
        ("patch.noise=0", "patch.noise=0.0 is not allowed: give more than 0"),
        ("patch.draws=0", "patch.draws=0 is not allowed: give 1 or more"),
        ("patch.site=q", "choose from resid_post, mlp_out, attn_out"),
        ("patch.direction=noise", "patch.direction does not exist; patch has name, site, by, subject"),
        ("ablation=zero", "ablation=zero has no effect with patch=tracing"),
    ],
)
def test_wrong_input(case: Case, here: Path, capfd: pytest.CaptureFixture[str], options: str, said: str) -> None:
    (here / "none.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    key, _, value = options.partition("=")
    arguments = case.arguments(job="patch", patch="tracing", **{key: value})
    assert_refused([*arguments, "hydra.run.dir=out"], capfd, said)
    assert not (here / "out").exists()
