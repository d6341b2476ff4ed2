"""The compiled programs and the logic gates: what the models compute, and the tasks on them."""

from __future__ import annotations

import importlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acdc.compose import compose_config
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model import ModelSettings, load_model
from acdc.model.check import check_parts
from acdc.model.forward import run
from acdc.model.load import COMPILED, make_native, save_native
from acdc.tasks import TASKS
from acdc.tasks.base import Pair, Task, Tokenizer
from scripts.gates import GATES, build_gate

OWN = ("tracr_reverse", "tracr_proportion", "gate_or", "gate_and")
N_TOKENS = {"tracr_reverse": 5, "tracr_proportion": 6, "gate_or": 4, "gate_and": 4}


def logits_of(name: str, prompts: Any) -> torch.Tensor:
    """The parts' logits `prompt pos column`; the parts are held against the bridge itself."""
    model, bridge = load_model(ModelSettings(name=name, device="cpu"))
    tokens = torch.tensor(prompts)
    assert check_parts(model, bridge, tokens) < 1e-6
    _, stream = run(model, tokens, torch.full((len(tokens),), tokens.shape[1]))
    return model.unembed(stream)


def build(name: str, **options: Any) -> Task:
    return TASKS.load(name)(**options).build(Tokenizer(None, N_TOKENS[name]))


@pytest.mark.parametrize(
    ("name", "recorded"),
    [("tracr_reverse", "reverse4"), ("tracr_reverse", "reverse3"), ("tracr_proportion", "xproportion4")],
)
def test_compiled_programs_do_what_tracr_recorded(name: str, recorded: str, shared: Path) -> None:
    numpy = pytest.importorskip("numpy")
    data = numpy.load(shared / "data" / "tracr" / f"{recorded}_io.npz")
    ours, theirs = logits_of(name, data["tokens"].tolist()), torch.tensor(data["logits"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert torch.equal(ours.argmax(-1)[:, 1:], theirs.argmax(-1)[:, 1:])  # at BOS nothing is decoded


@pytest.mark.parametrize(("name", "recorded"), [("tracr_reverse", "reverse4"), ("tracr_proportion", "xproportion4")])
def test_token_ids_are_tracrs(name: str, recorded: str, shared: Path) -> None:
    encoding = json.loads((shared / "data" / "tracr" / f"{recorded}.json").read_text())["input_encoding"]
    for word, index in encoding.items():
        assert f"| {word} | {index} |" in (COMPILED / name / "README.md").read_text()
    module = importlib.import_module(f"acdc.tasks.{name}")
    assert encoding["BOS"] == module.BOS
    if name == "tracr_proportion":
        assert encoding["x"] == module.X


def test_the_reverse_program_reverses_every_sequence() -> None:
    for length in (2, 3, 4):
        sequences = list(product(range(3), repeat=length))
        decoded = logits_of("tracr_reverse", [[3, *words] for words in sequences]).argmax(-1)[:, 1:]
        assert decoded.tolist() == [list(reversed(words)) for words in sequences]


def test_the_proportion_program_counts_every_sequence() -> None:
    sequences = list(product(range(2, 6), repeat=4))
    shares = [[words[: i + 1].count(3) / (i + 1) for i in range(4)] for words in sequences]
    ours = logits_of("tracr_proportion", [[0, *words] for words in sequences])[:, 1:, 0]
    torch.testing.assert_close(ours, torch.tensor(shares), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GATES)
def test_gates_compute_their_truth_table_exactly(name: str) -> None:
    bits = list(product((0, 1), repeat=2))
    last = logits_of(name, [[a, 2 + b] for a, b in bits])[:, -1]
    expected = [(a or b) if name == "gate_or" else (a and b) for a, b in bits]
    assert last.tolist() == [[1.0 - 2 * value, 2.0 * value - 1] for value in expected]


@pytest.mark.parametrize("name", GATES)
def test_the_committed_gates_are_those_of_the_script(name: str, tmp_path: Path) -> None:
    config = json.loads((COMPILED / name / "config.json").read_text())
    config.pop("architecture")
    save_native(build_gate(name), tmp_path, config)
    _assert_same_folder(tmp_path, COMPILED / name)


@pytest.mark.parametrize("index", [0, 1])
def test_the_committed_programs_are_those_of_the_script(index: int, tmp_path: Path) -> None:
    pytest.importorskip("tracr", reason="needs the extra tracr")
    from scripts.compile_tracr import PROGRAMS, compile_program

    bridge, config, readme = compile_program(PROGRAMS[index])
    save_native(bridge, tmp_path, config)
    _assert_same_folder(tmp_path, COMPILED / PROGRAMS[index].name)
    assert readme == (COMPILED / PROGRAMS[index].name / "README.md").read_text()


def _assert_same_folder(ours: Path, committed: Path) -> None:
    assert (ours / "config.json").read_text() == (committed / "config.json").read_text()
    new, old = load_file(ours / "model.safetensors"), load_file(committed / "model.safetensors")
    assert new.keys() == old.keys()
    for name, value in new.items():
        torch.testing.assert_close(value, old[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_the_committed_data_is_small_and_says_where_it_is_from(name: str) -> None:
    assert sum(file.stat().st_size for file in (COMPILED / name).iterdir()) < 60_000
    readme = (COMPILED / name / "README.md").read_text()
    assert "python -m scripts." in readme
    assert ("Apache License 2.0" in readme) == name.startswith("tracr")


def test_a_native_model_with_a_parameter_it_does_not_have_is_refused() -> None:
    config = json.loads((COMPILED / "gate_or" / "config.json").read_text())
    config.pop("architecture")
    with pytest.raises(Exception, match=r"no tok_embed.weight of shape \[4, 6\]"):
        make_native(config, {"tok_embed.weight": torch.zeros(4, 6)})


# The tasks.


@pytest.mark.parametrize("name", OWN)
def test_pairs_are_seeded_and_distinct(name: str) -> None:
    for corruption in TASKS.load(name)(size=8).corruption, "resample":
        task = build(name, size=8, seed=3, corruption=corruption)
        assert task.pairs == build(name, size=8, seed=3, corruption=corruption).pairs
        assert len({tuple(pair.clean) + tuple(pair.corrupted) for pair in task.pairs}) == len(task.pairs) <= 8
        assert all(pair.clean != pair.corrupted for pair in task.pairs)
    if name.startswith("tracr"):
        assert build(name, size=8, seed=3).pairs != build(name, size=8, seed=4).pairs
        assert len(build(name, size=8).pairs) == 8


@pytest.mark.parametrize(("name", "bos"), [("tracr_reverse", 3), ("tracr_proportion", 0)])
@pytest.mark.parametrize("corruption", ["resample", "permuted"])
@pytest.mark.parametrize("length", [2, 3, 4])
def test_prompts_of_the_programs(name: str, bos: int, corruption: str, length: int) -> None:
    pairs = build(name, length=length, corruption=corruption).pairs
    for pair in pairs:
        assert pair.clean[0] == pair.corrupted[0] == bos
        assert bos not in pair.clean[1:] + pair.corrupted[1:]
        assert len(pair.clean) == len(pair.corrupted) == length + 1
        assert pair.position == list(range(1, length + 1))
        if corruption == "permuted":
            assert sorted(pair.clean) == sorted(pair.corrupted)
    clean, corrupted = (logits_of(name, [getattr(pair, which) for pair in pairs]) for which in ("clean", "corrupted"))
    assert bool(((clean - corrupted)[:, 1:].abs().amax((1, 2)) > 0.1).all())  # the program answers otherwise


def test_answers_are_the_programs_outputs() -> None:
    pairs = build("tracr_reverse", size=100).pairs
    assert len(pairs) == 27
    best = logits_of("tracr_reverse", [pair.clean for pair in pairs]).argmax(-1)
    for pair, row in zip(pairs, best.tolist(), strict=True):
        assert pair.answers == [[token] for token in row[1:]]
        assert all(sorted(a + w) == [0, 1, 2] for a, w in zip(pair.answers, pair.wrong_answers, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [((1, 1), (0, 0))]),
        ({"corruption": "resample"}, [((1, 1), other) for other in ((0, 0), (0, 1), (1, 0))]),
        ({"inputs": "all"}, [((a, b), (1 - a, 1 - b)) for a in (0, 1) for b in (0, 1)]),
        (
            {"inputs": "all", "corruption": "resample"},
            [(x, y) for x in product((0, 1), repeat=2) for y in product((0, 1), repeat=2) if x != y],
        ),
    ],
)
@pytest.mark.parametrize("name", GATES)
def test_prompts_of_the_gates(name: str, options: dict[str, Any], expected: list[Any]) -> None:
    pairs = build(name, **options).pairs
    assert sorted(((p.clean[0], p.clean[1] - 2), (p.corrupted[0], p.corrupted[1] - 2)) for p in pairs) == sorted(
        expected
    )
    decoded = logits_of(name, [pair.clean for pair in pairs])[:, -1].argmax(-1).tolist()
    assert [pair.answers for pair in pairs] == [[value] for value in decoded]
    assert [pair.wrong_answers for pair in pairs] == [[1 - value] for value in decoded]


def test_the_originals_prompts_have_no_bos_in_front() -> None:
    pairs = build("tracr_proportion", prompts="original", size=50).pairs
    assert len(pairs) == 50
    assert {token for pair in pairs for token in pair.clean} == {0, 1, 2, 3}
    assert {len(pair.clean) for pair in pairs} == {4}
    assert all(pair.position == [1, 2, 3] for pair in pairs)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tracr_reverse", {"length": 5}, "task.length=5 is not known: choose one of 2, 3, 4"),
        ("tracr_proportion", {"prompts": "mine"}, "task.prompts=mine is not known: choose words or original"),
        ("gate_or", {"inputs": "none"}, "task.inputs=none is not known: choose ones or all"),
        ("gate_and", {"corruption": "abc"}, "task.corruption=abc is not known: choose opposite or resample"),
    ],
)
def test_what_is_not_allowed_is_said(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(name, **options)


@pytest.mark.parametrize("name", OWN)
def test_the_task_brings_its_model_and_the_user_may_choose_another(name: str) -> None:
    own = compose_config([f"task={name}"], None)
    assert own.model.name == own.task.name == name
    assert build(name).model == TASKS.load(name).own_model == name
    for overrides in ([f"task={name}", "model=pocket"], ["model=pocket", f"task={name}"]):
        assert compose_config(overrides, None).model.name == "pocket"
    assert compose_config(["task=ioi"], None).model.name == "pocket"


@pytest.mark.parametrize("name", OWN)
def test_another_model_is_noted(name: str) -> None:
    assert build(name).notes == []
    (note,) = TASKS.load(name)().build(Tokenizer(None, 321)).notes
    assert f"made for model={name}" in note


def test_an_experiment_on_the_bundled_name() -> None:
    experiment = Experiment.build("gate_and", "gate_and", inputs="all")
    assert experiment.metric_name == "l2"
    assert experiment.default_threshold == 1e-3
    assert [type(pair) for pair in experiment.task.pairs] == [Pair] * 4
