"""The example of a plug-in as it is used, things of one's own by `_target_`, and those that cannot be used."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from commands import assert_refused, make_case
from experiments import experiment, random_pairs, small
from hydra.core.config_store import ConfigStore
from torch import Tensor

from acdc import Experiment, discover, doors
from acdc.ablation import ABLATIONS
from acdc.cli import run
from acdc.discovery import METHODS
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError, ExtensionError
from acdc.metrics import METRICS, Metric, Readouts
from acdc.tasks import TASKS

installed = pytest.mark.skipif(find_spec("acdc_plugin") is None, reason="examples/plugin is not installed: make test")

OWN_TASK = """
from dataclasses import dataclass
from acdc.settings import option
from acdc.tasks.base import Pair, Task, TaskSettings

@dataclass(frozen=True)
class Mine(TaskSettings):
    \"\"\"Mine.\"\"\"
    name: str = "mine"
    first: int = option(2, "the first token", least=1)

    def build(self, tokenizer):
        pair = Pair([self.first, 5, 7, 3], [self.first, 6, 7, 4], [8], [9])
        return Task(self.name, [pair], "logit_diff", {"logit_diff": 0.02})

class Nothing:
    pass

@dataclass(frozen=True)
class Half(TaskSettings):
    pass

class Plain(TaskSettings):
    size: int = 3
    def build(self, tokenizer):
        return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that one stands in, with a module and configuration of one's own."""
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    (tmp_path / "raises.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text("_target_: own_task.Mine\nfirst: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_task", "raises"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


# The example.


@installed
def test_the_example_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = ["task=copying", "metric=margin", "ablation=partway", "ablation.share=0.7", "method=by_size", "task.size=8"]
    assert run([*own, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    saved = json.loads((tmp_path / "out" / "circuit.json").read_text())
    assert saved["method"]["name"] == "by_size"
    assert saved["provenance"]["settings"]["ablation"] == {"name": "partway", "share": 0.7}
    assert saved["metrics"]["metric"] == "margin"
    capfd.readouterr()
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    for name in ("copying", "margin", "partway", "by_size"):
        assert name in out


@installed
def test_the_metric_of_the_example_is_its_definition() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, -1.0]])
    answers = torch.tensor([[1, -1], [2, 0]])
    readouts = Readouts(torch.arange(2), torch.zeros(2, dtype=torch.long), torch.full((2,), 0.5), answers, answers)
    assert METRICS.chosen("margin").values(logits, readouts, None).tolist() == [2.0, -5.0]


@installed
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_both_engines_decide_alike_by_a_metric_of_ones_own(kind: str) -> None:
    one = experiment(small(kind), random_pairs(4)).with_metric("margin")
    incremental, full = (discover(one, threshold=0.02, engine=engine) for engine in ("incremental", "full"))
    assert incremental.tested.keys() == full.tested.keys()
    assert set(incremental) == set(full)
    assert list(incremental.tested.values()) == pytest.approx(list(full.tested.values()), abs=1e-5)


@installed
def test_the_ablation_of_the_example_lies_between() -> None:
    pairs = random_pairs(5)
    for share, other in ((0.0, "clean"), (1.0, "corrupted")):
        one = experiment(small("gpt2"), pairs, "kl_div", ABLATIONS.chosen("partway", {"share": share}))
        expected = one.clean if other == "clean" else experiment(small("gpt2"), pairs).ablated
        torch.testing.assert_close(one.ablated.heads, expected.heads)


@installed
def test_the_family_of_the_example(tmp_path: Path) -> None:
    """OLMo's parts compute what Hugging Face's own model computes; without the plug-in it is refused."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.OlmoForCausalLM(transformers.OlmoConfig(vocab_size=40, **sizes, **ids)).eval()
    task = experiment(small("gpt2"), random_pairs(6, lengths=(5, 5))).task
    one = Experiment.build(model, task)
    tokens = one.batch.clean
    torch.testing.assert_close(one.clean_logits, model(tokens).logits[one.readouts.row, one.readouts.position])
    whole = FullEngine(one).losses([EdgeMask.all(one.graph)])
    assert float(whole[0]) == pytest.approx(0.0, abs=1e-6)  # KL to the model itself


# By `_target_`.


def test_a_task_by_target(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = [f"model.path={make_case(here).model}", "model=local", "task.check=off"]
    assert run([*model, "--config-dir", "conf", "task=mine", "hydra.run.dir=out"]) == 0
    saved = json.loads((here / "out" / "circuit.json").read_text())
    assert saved["task"] == "mine"
    assert saved["provenance"]["settings"]["task"]["_target_"] == "own_task.Mine"
    assert saved["provenance"]["settings"]["task"]["first"] == 3
    # What only a file names is not imported, neither to evaluate nor to go on.
    stands = "task._target_=own_task.Mine stands in a file and is not imported from there"
    evaluate = ["job=evaluate", "circuit=out", "job.parts=[faithfulness]", "hydra.run.dir=evaluated"]
    assert_refused(evaluate, capfd, stands)
    assert not (here / "evaluated").exists()
    assert run([*evaluate, "task._target_=own_task.Mine"]) == 0
    state = here / "out" / "run.json"
    state.write_text(state.read_text().replace('"finished": true', '"finished": false'))
    assert_refused(["resume=out"], capfd, stands)
    assert run(["resume=out", "task._target_=own_task.Mine"]) == 0


def test_pairs_have_a_name_and_a_title_of_their_own(tmp_path: Path) -> None:
    arguments = make_case(tmp_path).arguments(task__name="winter", task__title="'Winter or summer'")
    assert run([*arguments, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    saved = json.loads((tmp_path / "out" / "circuit.json").read_text())
    assert saved["task"] == "winter"
    for file in ("report.html", "circuit.dot"):
        assert "Winter or summer" in (tmp_path / "out" / file).read_text(encoding="utf-8")
    # Found again from the circuit's file alone: the class is one of the package's own.
    again = ["job=evaluate", f"circuit={tmp_path / 'out'}", "job.parts=[faithfulness]"]
    assert run([*again, f"hydra.run.dir={tmp_path / 'evaluated'}"]) == 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "own_task.Nothing",
            "own_task.Nothing is the class Nothing, and a task is a class that extends acdc.tasks.base",
        ),
        ("own_task.Half", "own_task.Half lacks build, which a task has (see acdc.tasks.base.TaskSettings)"),
        ("own_task.Plain", "has options, so it has to be a dataclass: add @dataclass(frozen=True)"),
        ("own_task.OWN", "own_task has no OWN"),
        ("raises.Mine", "importing raises raises RuntimeError: not today"),
        ("no_such_module.Mine", "there is no module no_such_module here or among the installed packages"),
        ("Mine", "give MODULE.CLASS"),
    ],
)
def test_what_cannot_be_used_gets_one_line(
    here: Path, target: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused([f"task._target_={target}", "hydra.run.dir=out"], capfd, said)
    assert not (here / "out").exists()


def test_a_wrong_option_of_ones_own(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option, said in (("task.first=0", "task.first=0 is not allowed: give 1 or more"), ("task.frst=1", "task.frst")):
        assert_refused(["--config-dir", "conf", "task=mine", option, "hydra.run.dir=out"], capfd, said)


def test_help_lists_only_what_works(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "conf" / "task" / "bad.yaml").write_text("_target_: own_task.Nothing\n")
    assert run(["--config-dir", "conf", "--help"]) == 0
    out = capfd.readouterr().out
    listed = out[out.index("Groups, ") : out.index("Not listed")]
    assert "mine" in listed
    assert "bad" not in listed
    assert "task=bad" in out


# By entry point.


def test_an_installed_thing_that_cannot_be_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    points = [EntryPoint("broken", "raises:Mine", "acdc.tasks"), EntryPoint("mine", "own_task:Mine", "acdc.tasks")]
    monkeypatch.setattr(doors, "entry_points", lambda group: [p for p in points if p.group == group])
    monkeypatch.setattr(doors, "_loaded", {})
    with pytest.raises(ExtensionError, match=r"^task=broken cannot be loaded: importing raises raises RuntimeError"):
        TASKS.load("broken")
    assert TASKS.load("mine")().name == "mine"
    try:
        assert_refused(["task=broken", "hydra.run.dir=out"], capfd, "importing raises raises RuntimeError: not today")
    finally:
        ConfigStore.instance().repo["task"].pop("mine.yaml")


# In Python.


@dataclass(frozen=True)
class First(Metric):
    """The first logit."""

    larger_is_better: ClassVar[bool] = True
    name: str = "first"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        return logits[..., 0]


def test_a_metric_in_python() -> None:
    built = experiment(small("gpt2"), random_pairs(7))
    one = Experiment.build(built.model, built.task, metric=First())
    assert float(one.metric.value(one.clean_logits)) == pytest.approx(float((one.clean_logits[:, 0]).mean()), abs=1e-6)
    circuit = discover(one, METHODS.chosen("eap", {"edges": 5}))
    assert circuit.provenance == {}
    assert len(circuit.tested) == len(one.graph)


def test_what_is_none_of_these() -> None:
    built = experiment(small("gpt2"), random_pairs(7))
    with pytest.raises(ConfigError, match="metric is of type int: give a name, or a metric of your own"):
        Experiment.build(built.model, built.task, metric=3)
    with pytest.raises(ConfigError, match="method is of type dict"):
        discover(built, {})


def test_the_task_of_the_docs(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    (here / "winter.py").write_text(next(text for kind, text in blocks if kind == "python"), encoding="utf-8")
    (here / "conf" / "task" / "winter.yaml").write_text(next(text for kind, text in blocks if kind == "yaml"))
    assert run(["--config-dir", "conf", "--help", "task=winter"]) == 0
    out = capfd.readouterr().out
    assert "task=winter: Winter or summer: which season is cold." in out
    assert "task.loud=true" in out
