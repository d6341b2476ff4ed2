"""`patch=direct`, `patch=attribution` and `patch.shortlist`, tried the way a user would."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def drawn_text(path: Path) -> str:
    ElementTree.parse(path)
    return "\n".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_direct_as_a_process(case: Case, here: Path) -> None:
    done = as_process(*case.arguments(job="patch", patch="direct"), "hydra.run.dir=out", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The largest direct shares" in done.stdout
    assert done.stdout.endswith(f"report               {here / 'out' / 'report.html'}\n")
    folder = here / "out"
    pictures = {f"direct_{way}.{kind}" for way in ("layer", "head") for kind in ("svg", "png")}
    frame = {"metrics.json", "run.json", "run.log", "resolved.yaml", ".hydra", "report.html"}
    assert {path.name for path in folder.iterdir()} == {"direct.csv", "direct.npz", *pictures, *frame}
    experiment = Experiment.build(str(case.model), "pairs", "logit_diff", path=str(case.pairs))
    same = patch(experiment, "direct")
    metrics = read_json(folder / "metrics.json")
    rows, arrays = rows_of(folder / "direct.csv"), np.load(folder / "direct.npz")
    for way in ("layer", "head"):
        for which in ("clean", "corrupted"):
            total = sum(float(row[which]) for row in rows if row["by"] == way)
            assert total == pytest.approx(metrics[which], abs=1e-4)
            assert arrays[f"{way}_{which}"].sum(0) == pytest.approx(getattr(same, which).numpy(), abs=1e-4)
    largest = max((row for row in rows if row["by"] == "head"), key=lambda row: float(row["clean"]))
    assert metrics["head_largest"] == largest["part"]
    assert {"heads, clean", "m1", "a0 bias", "final_bias"} <= set(drawn_text(folder / "direct_head.svg").split("\n"))
    assert "sum so far, clean" in drawn_text(folder / "direct_layer.svg")
    page = (folder / "report.html").read_text()
    assert "All 10 parts sum to" in page


def test_every_way_is_drawn(case: Case, here: Path) -> None:
    ways = ["sublayer", "neuron"]
    assert (
        run([*case.arguments(job="patch", patch="direct", patch__by=f"[{','.join(ways)}]"), "hydra.run.dir=out"]) == 0
    )
    assert [image.imread(here / "out" / f"direct_{way}.png").shape[2] for way in ways] == [4, 4]
    assert "the 40 largest of" in drawn_text(here / "out" / "direct_neuron.svg")


def test_attribution_beside_real_patching(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(job="patch", patch="attribution", patch__site="[q,head_output]", patch__qk_fix="true")
    assert run([*arguments, "patch.disagreements=2", "hydra.run.dir=out"]) == 0
    shown = capfd.readouterr().out
    for title in ("as estimated", "Estimated and real patching", "Where they disagree most"):
        assert title in shown
    folder = here / "out"
    maps = [f"{site}_{direction}" for site in ("q", "head_output") for direction in ("noise", "denoise")]
    assert {path.stem for path in folder.glob("*.png")} == {*maps, *(f"{name}_compare" for name in maps)}
    rows, arrays = rows_of(folder / "attribution.csv"), np.load(folder / "attribution.npz")
    metrics = read_json(folder / "metrics.json")
    for name in maps:
        site, _, direction = name.rpartition("_")
        mine = [row for row in rows if (row["site"], row["direction"]) == (site, direction)]
        estimated, real = ([float(row[key]) for row in mine] for key in ("recovery", "real"))
        assert metrics[f"{name}_pearson"] == pytest.approx(np.corrcoef(estimated, real)[0, 1])
        assert arrays[name].flatten() == pytest.approx(estimated)
        assert arrays[f"{name}_real"].flatten() == pytest.approx(real)
        title = drawn_text(folder / f"{name}_compare.svg")
        assert f"Pearson {metrics[f'{name}_pearson']:.3f}" in title
        assert "estimated" in drawn_text(folder / f"{name}.svg")
    listed = rows_of(folder / "disagreements.csv")
    assert len(listed) == 2 * len(maps)
    assert {"estimated", "real", "direct", "backup", "backup_total"} <= set(listed[0])
    page = (folder / "report.html").read_text()
    assert "backup heads" in page
    assert "QK fix" in page
    assert "pairs in attribution.csv" in page
    assert "patch.csv" not in page
    assert not re.search("<th[^>]*>(class|shift)<", page)  # estimates have neither
    assert " class" not in shown


def test_grad_drop_without_real_patching(case: Case, here: Path) -> None:
    arguments = case.arguments(job="patch", patch="attribution", patch__grad_drop="true", patch__compare="false")
    assert run([*arguments, "hydra.run.dir=out"]) == 0
    assert not (here / "out" / "disagreements.csv").exists()
    importance = [1 - float(row["recovery"]) for row in rows_of(here / "out" / "attribution.csv")[:4]]
    assert min(importance) > -1e-6
    assert max(importance) > 0


def test_a_shortlist_says_what_it_left_out(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(job="patch", patch__by="head_position", patch__shortlist="attribution")
    assert run([*arguments, "patch.shortlist_size=5", "hydra.run.dir=out"]) == 0
    folder = here / "out"
    assert len(rows_of(folder / "patch.csv")) == 10
    metrics = read_json(folder / "metrics.json")
    assert (metrics["sites"], metrics["skipped"], metrics["head_output_noise_skipped"]) == (10, 22, 11)
    arrays = np.load(folder / "patch.npz")
    left = np.abs(arrays["head_output_noise_estimate"][np.isnan(arrays["head_output_noise"])])
    assert metrics["head_output_noise_largest_skipped"] == pytest.approx(left.max())
    note = "head_output, noise: 11 of 16 sites were not patched"
    assert note in " ".join(capfd.readouterr().out.split())
    assert note in (folder / "report.html").read_text()
    assert note in (folder / "run.log").read_text()
    picture = image.imread(folder / "head_output_noise.png")[..., :3]
    assert (abs(picture - 0.82).max(-1) < 0.01).any()  # grey: left out
    assert len(re.findall(r"^−?\d\.\d\d$|^0$", drawn_text(folder / "head_output_noise.svg"), re.MULTILINE)) >= 5


def test_whole_sweeps_skip_nothing(case: Case, here: Path) -> None:
    assert run([*case.arguments(job="patch"), "hydra.run.dir=out"]) == 0
    assert read_json(here / "out" / "metrics.json")["skipped"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("patch=direct metric=kl_div", ["metric=kl_div", "give metric=logit_diff"]),
        ("patch=direct patch.by=token", ["patch.by=token", "layer, sublayer, head, neuron"]),
        ("patch=direct patch.site=q", ["patch.site does not exist", "patch has name, by"]),
        ("patch=attribution metric=kl_div", ["metric=kl_div", "patch.direction=denoise"]),
        ("patch=attribution patch.qk_fix=true", ["patch.qk_fix=true has no effect", "patch.site=q"]),
        ("patch=attribution patch.disagreements=-1", ["patch.disagreements=-1", "0 or more"]),
        ("patch=attribution patch.compare=perhaps", ["patch.compare=perhaps", "true or false"]),
        ("patch=attribution ablation=mean", ["ablation=mean", "ablation=corrupted"]),
        ("patch.shortlist=random", ["patch.shortlist=random", "attribution, or null"]),
        ("patch.shortlist=attribution patch.shortlist_size=0", ["patch.shortlist_size=0", "1 or more"]),
        ("patch.shortlist=attribution metric=kl_div", ["metric=kl_div", "patch.direction=denoise"]),
    ],
)
def test_wrong_input_is_one_line(
    given: str, said: list[str], case: Case, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = dict(argument.split("=", 1) for argument in given.split())
    arguments = case.arguments(job="patch", **{key.replace(".", "__"): value for key, value in options.items()})
    assert_refused([*arguments, "hydra.run.dir=out"], capfd, *said)
    assert not (here / "out").exists()
