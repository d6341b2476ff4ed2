"""Wrong input: one line that says what is allowed, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Case, as_process, assert_refused, make_case

from acdc.discovery import METHODS


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


IN_MEMORY = [name for name in METHODS.built_in if name != "random"]
WRONG: list[tuple[str, list[str]]] = [
    # groups
    ("task=foo", ["task=foo does not exist", "ioi", "pairs"]),
    ("model=foo", ["model=foo does not exist", "pocket", "gpt2"]),
    ("method=foo", ["method=foo does not exist", "acdc"]),
    ("metric=foo", ["metric=foo does not exist", "kl_div", "logit_diff"]),
    ("ablation=foo", ["ablation=foo does not exist", "corrupted, mean, noise"]),
    ("patch=foo", ["patch=foo does not exist", "activation"]),
    ("tracker=foo", ["tracker=foo does not exist", "none, wandb"]),
    ("job=foo", ["job=foo does not exist", "discover"]),
    ("experiment=foo", ["experiment=foo does not exist", "ioi_kl"]),
    ("hydra/launcher=foo", ["hydra/launcher=foo does not exist", "basic, joblib"]),
    ("hydra/launcher=ray", ["hydra/launcher=ray", "pip install 'acdc[clusters]'"]),
    ("taks=ioi", ["taks does not exist", "task"]),
    ("~task", ["task needs one option"]),
    ("metric=null", ["metric", "takes the name of an option"]),
    ("task=[ioi,induction]", ["task needs one option"]),
    ("task=ioi,induction", ["task=ioi,induction has several values", "-m"]),
    # keys
    ("foo=1", ["foo does not exist", "job, model, task, metric, ablation, method, patch, tracker"]),
    ("+foo=1", ["foo does not exist", "task"]),
    ("+foo.bar=1", ["foo does not exist"]),
    ("method.foo=1", ["method.foo does not exist", "method has name, threshold"]),
    ("+method.foo=1", ["method.foo does not exist", "method has name, threshold"]),
    ("+metric.foo=1", ["metric.foo does not exist"]),
    ("method.threshold.x=1", ["method.threshold.x does not exist", "method has"]),
    ("task=induction task.order=abba", ["task.order does not exist", "length"]),
    ("~method.foo", ["method.foo", "does not exist"]),
    ("hydra.foo=1", ["hydra.foo does not exist", "sweep"]),
    # types
    ("method.threshold=abc", ["method.threshold=abc", "a finite number or null"]),
    ("method.threshold=", ["method.threshold=", "a finite number or null"]),
    ("method.threshold=nan", ["method.threshold=nan", "a finite number"]),
    ("method.threshold=inf", ["method.threshold=inf", "a finite number"]),
    ("method.threshold=true", ["method.threshold=true", "a finite number"]),
    ("method.projection_edges=perhaps", ["method.projection_edges=perhaps", "true or false"]),
    ("task.size=many", ["task.size=many", "a whole number"]),
    ("task.size=1.5", ["task.size=1.5", "a whole number"]),
    ("task.size=null", ["task.size=null", "a whole number"]),
    ("model.path=5", ["model.path=5", "text or null"]),
    ("patch.layers=all", ["patch.layers=all", "a list or a whole number or null"]),
    ("patch.positions=1.5", ["patch.positions=1.5", "a list or a whole number or text or null"]),
    ("tracker.tags=x", ["tracker.tags=x", "a list"]),
    # values
    ("task.check=maybe", ["task.check=maybe", "error, warn, off"]),
    ("method.engine=fast", ["method.engine=fast", "incremental or full"]),
    ("patch.direction=up", ["patch.direction=up", "noise, denoise, both"]),
    ("patch.by=token", ["patch.by=token", "auto, position, head"]),
    ("job=patch patch.site=residual", ["patch.site=residual", "resid_pre, resid_mid"]),
    ("job=patch patch.site=mlp_out patch.by=head", ["patch.by=head", "auto or position"]),
    ("job=patch patch.layers=[0,7]", ["patch.layers=7", "from 0 to 3"]),
    ("job=patch patch.positions=[4]", ["patch.positions=4", "not the same place", "S1+1"]),
    ("job=patch patch.from=input", ["patch.from=input is nothing that receives", "logits or a0.h0 to a3.h3"]),
    ("job=patch patch.from=logits patch.receivers=[m1]", ["patch.receivers has no effect with patch.from"]),
    ("job=patch patch.from=5", ["patch.from=5 is not allowed: give text or null"]),
    ("job=patch patch.senders=[a9.h0]", ["patch.senders=a9.h0 is not in this model", "m0 to m3"]),
    ("job=patch patch=path patch.depth=2", ["patch.depth has no effect without patch.from"]),
    ("patch=activation patch.from=logits", ["patch.from does not exist; patch has name, site"]),
    ("patch.from=logits patch.site=q", ["does not exist; patch has name, site"]),
    ("-m patch=activation,path patch.from=logits", ["patch.from does not exist; patch has name, site"]),
    ("job=patch ablation=zero", ["ablation=zero", "ablation=corrupted"]),
    ("job=patch circuit=x.json", ["circuit=FILE is for job=evaluate"]),
    ("method.batch_size=0", ["method.batch_size=0", "auto"]),
    ("method.batch_size=many", ["method.batch_size=many", "auto"]),
    *((f"method={name} method.memory_gb=0", ["method.memory_gb=0", "more than 0"]) for name in IN_MEMORY),
    ("method.shortlist_share=0.3", ["method.shortlist_share=0.3 has no effect without method.shortlist"]),
    ("method.shortlist_only=false", ["method.shortlist_only=false has no effect without method.shortlist"]),
    ("method.shortlist=eap metric=kl_div", ["method.shortlist=eap: metric=kl_div has no slope"]),
    ("model.dtype=int8", ["model.dtype=int8", "float32"]),
    ("ablation.draws=0", ["ablation.draws=0", "1 or more"]),
    ("ablation=noise ablation.scale=-1", ["ablation.scale=-1", "0 or more"]),
    ("ablation=zero ablation.seed=3", ["ablation.seed does not exist", "ablation has name"]),
    ("tracker.mode=foo", ["tracker.mode=foo", "online, offline, disabled"]),
    ("tracker.every=0", ["tracker.every=0", "1 or more"]),
    ("task.name=foo", ["task=foo does not exist"]),
    ("metric.name=foo", ["metric=foo", "logit_diff"]),
    ("method.name=foo", ["method=foo does not exist"]),
    ("job.name=foo", ["job=foo does not exist"]),
    # what is no override
    ("=3", ["'=3' is not KEY=VALUE", "--help"]),
    ("method.threshold", ["'method.threshold' is not KEY=VALUE"]),
    ("method.threshold={", ["'method.threshold={'", "quote"]),
    ("method.threshold=${foo}", ["method.threshold", "foo"]),
    ("method.threshold=???", ["method.threshold"]),
    # flags
    ("--foo", ["--foo", "--help"]),
    ("--cfg foo", ["foo", "job"]),
    ("--cfg job task=foo", ["task=foo does not exist"]),
    ("--help task=foo", ["task=foo does not exist"]),
    ("--config-name other", ["--config-dir"]),
    ("--config-dir nowhere", ["nowhere is not a folder"]),
    ("--experimental-rerun x", ["resume=FOLDER"]),
    ("--resolve", ["--cfg"]),
    # resume
    ("resume=nowhere", ["resume=nowhere", "no run was started there"]),
    ("resume=", ["resume=FOLDER"]),
    ("resume=nowhere task=ioi", ["stands alone"]),
    # sweeps, wrong in one of the combinations
    ("-m task=ioi,foo", ["task=foo does not exist"]),
    ("-m method.threshold=0.1,abc", ["method.threshold=abc"]),
    ("-m method.foo=1,2", ["method.foo does not exist"]),
    ("-m +foo=1,2", ["foo does not exist"]),
    ("-m method.threshold={", ["quote"]),
    ("-m method.engine=full,fast", ["method.engine=fast"]),
    ("-m hydra/launcher=foo task.seed=1,2", ["basic, joblib"]),
    ("-m --cfg job", ["only one of"]),
    ("-m resume=nowhere", ["stands alone"]),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_words_are_refused_in_one_line(
    line: str, said: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(line.split(" "), capfd, *said)
    assert not list(here.iterdir())


def test_a_word_with_a_space_is_no_override(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(["a b"], capfd, "'a b' is not KEY=VALUE")


def _text(name: str, text: str) -> Callable[[Path, Case], dict[str, object]]:
    def make(folder: Path, case: Case) -> dict[str, object]:
        (folder / name).write_text(text)
        return {"task__path": folder / name}

    return make


def _model(change: Callable[[Path], object]) -> Callable[[Path, Case], dict[str, object]]:
    def make(folder: Path, case: Case) -> dict[str, object]:
        shutil.copytree(case.model, folder / "model")
        change(folder / "model")
        return {"model__path": folder / "model"}

    return make


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pocket(clean: str, corrupted: str, answer: str, wrong: str) -> Callable[[Path, Case], dict[str, object]]:
    """A good pair of text for the bundled model, and behind it this one."""

    def make(folder: Path, case: Case) -> dict[str, object]:
        good = {"clean": "So Mary is", "corrupted": "So John is", "answers": [" she"], "wrong_answers": [" he"]}
        pair = {"clean": clean, "corrupted": corrupted, "answers": [answer], "wrong_answers": [wrong]}
        (folder / "p.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(pair)}\n")
        return {"task__path": folder / "p.jsonl", "model": "pocket", "model__path": "null"}

    return make


GOOD = '{"clean": [1, 2], "corrupted": [3, 2]}\n'
WRONG_FILES: dict[str, tuple[Callable[[Path, Case], dict[str, object]], list[str]]] = {
    "no file": (lambda folder, case: {"task__path": folder / "none.jsonl"}, ["task.path", "none.jsonl"]),
    "a folder": (lambda folder, case: {"task__path": folder}, ["task.path"]),
    "no path": (lambda folder, case: {"task__path": "null"}, ["task.path=FILE"]),
    "not JSON": (_text("p.jsonl", GOOD + "{oops\n"), ["p.jsonl line 2", "not JSON"]),
    "no corrupted": (_text("p.jsonl", '{"clean": [1]}\n'), ["p.jsonl line 1", "'corrupted'"]),
    "unequal": (_text("p.jsonl", GOOD + '{"clean": [1, 2], "corrupted": [1]}\n'), ["p.jsonl line 2", "2 tokens", "1"]),
    "both": (
        _text("p.jsonl", '{"clean": [1], "corrupted": [2], "answers": [3], "wrong_answers": [3]}\n'),
        ["p.jsonl line 1", "both an answer and a wrong answer"],
    ),
    "unknown answer": (
        _pocket("So Mary is", "So John is", " zebra", " he"),
        ["p.jsonl line 2", "the answer ' zebra' is not in the model's vocabulary"],
    ),
    "two unknown answers": (
        _pocket("So Mary is", "So John is", " zebra", " giraffe"),
        ["p.jsonl line 2", "the answer ' zebra' is not in the model's vocabulary"],
    ),
    "unknown word": (
        _pocket("So Mary is", "So Zaphod is", " she", " he"),
        ["p.jsonl line 2", "the word 'Zaphod' of the prompt 'So Zaphod is' is not in the model's vocabulary"],
    ),
    "no answers": (_text("p.jsonl", GOOD), ["metric=logit_diff needs answers", "kl_div"]),
    "foreign id": (_text("p.jsonl", '{"clean": [99], "corrupted": [1]}\n'), ["p.jsonl line 1", "99"]),
    "text without tokenizer": (_text("p.jsonl", '{"clean": "a", "corrupted": "b"}\n'), ["tokenizer"]),
    "no model": (lambda folder, case: {"model__path": folder / "none"}, ["none", "config.json"]),
    "empty model": (lambda folder, case: {"model__path": folder}, ["config.json"]),
    "no model path": (lambda folder, case: {"model__path": "null"}, ["model.path=FOLDER"]),
    "damaged config": (_model(lambda m: (m / "config.json").write_text("{oops")), ["config.json is damaged"]),
    "damaged weights": (_model(lambda m: _halve(m / "model.safetensors")), ["model", "cannot be loaded"]),
    "no weights": (_model(lambda m: (m / "model.safetensors").unlink()), ["model", "cannot be loaded"]),
    "no architecture": (_model(lambda m: (m / "config.json").write_text('{"model_type": "foo"}')), ["foo"]),
    "by name": (lambda folder, case: {"model": "gpt2", "model__path": "null"}, ["gpt2", "network"]),
    "no threshold": (
        lambda folder, case: {"metric": "nll", "method__threshold": "null"},
        ["no threshold of its own", "method.threshold=NUMBER"],
    ),
    "task.size": (lambda folder, case: {"task__size": 0}, ["task.size=0"]),
    "task.corruption": (lambda folder, case: {"task__corruption": "xyz"}, ["task.corruption=xyz"]),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_wrong_files_are_refused_in_one_line(
    kind: str, sweep: bool, case: Case, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, said = WRONG_FILES[kind]
    (tmp_path / "data").mkdir()
    arguments = case.arguments(**make(tmp_path / "data", case))
    assert_refused([*(["-m"] if sweep else []), *arguments], capfd, *said)
    assert not list(here.iterdir())


def test_an_answer_of_two_tokens_is_refused(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"clean": "Mary and John", "corrupted": "Mary and Paul", "answers": [" went to"], "wrong_answers": [" a"]}\n'
    )
    assert_refused(["task=pairs", f"task.path={tmp_path / 'p.jsonl'}"], capfd, "line 1", "one token")
    assert not list(here.iterdir())


def test_a_device_that_is_not_there_is_refused(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(case.arguments(model__device="cuda:77"), capfd, "model.device=cuda:77", "cpu")
    assert not list(here.iterdir())


def test_folders_that_cannot_be_had(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("mine")
    for folder in ("file", "file/below"):
        assert_refused([*case.arguments(), f"hydra.run.dir={folder}"], capfd, "hydra.run.dir", "another folder")
        assert_refused(["-m", *case.arguments(), f"hydra.sweep.dir={folder}"], capfd, "another folder")
    assert [path.name for path in here.iterdir()] == ["file"]
    assert (here / "file").read_text() == "mine"


def test_the_process_says_one_line(here: Path) -> None:
    done = as_process("method.threshold=abc", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "acdc: method.threshold=abc is not allowed: give a finite number or null\n"
    assert not list(here.iterdir())
