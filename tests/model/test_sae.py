"""Sparse autoencoders against their formulas, written out; what is read from files; the bundled one's own numbers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from acdc import Experiment
from acdc.engine.resumed import ResumedRun
from acdc.errors import ModelError
from acdc.model.sae import BUNDLED, SparseAutoencoder, load_sae, read_sae, save_sae
from acdc.patching.sae_reconstruction import Survey
from acdc.tasks.base import Pair, Task, Tokenizer
from scripts.train_sae import held_out_pairs

D_IN, D_SAE = 6, 10


def tensors(seed: int = 0, threshold: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if threshold:
        found["threshold"] = torch.rand(D_SAE, generator=generator) + 0.2
    return found


def config(**changes: Any) -> dict[str, Any]:
    base = {
        "architecture": "jumprelu",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_pre", "model_name": "some"},
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def folder_with(path: Path, cfg: Any, weights: Mapping[str, Tensor], name: str = "sae_weights.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    save_file(dict(weights), path / name)
    return path


def by_hand(kind: str, t: dict[str, list[Any]], x: list[float], k: int, subtract: bool) -> tuple[list[float], ...]:
    """Features and reconstruction of one activation, in plain Python."""
    x = [a - b for a, b in zip(x, t["b_dec"], strict=True)] if subtract else x
    before = [sum(x[i] * t["W_enc"][i][j] for i in range(D_IN)) + t["b_enc"][j] for j in range(D_SAE)]
    if kind == "relu":
        f = [max(b, 0.0) for b in before]
    elif kind == "jumprelu":
        f = [b if b > limit else 0.0 for b, limit in zip(before, t["threshold"], strict=True)]
    else:
        kept = sorted(range(D_SAE), key=lambda j: -before[j])[:k]
        f = [max(before[j], 0.0) if j in kept else 0.0 for j in range(D_SAE)]
    return f, [sum(f[j] * t["W_dec"][j][i] for j in range(D_SAE)) + t["b_dec"][i] for i in range(D_IN)]


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(("kind", "named"), [("relu", "standard"), ("jumprelu", "jumprelu"), ("topk", "topk")])
def test_each_kind_is_its_formula(kind: str, named: str, subtract: bool, tmp_path: Path) -> None:
    weights = tensors()
    cfg = config(architecture=named, apply_b_dec_to_input=subtract, k=3 if kind == "topk" else None)
    sae = read_sae(folder_with(tmp_path / "sae", cfg, weights))
    assert (sae.kind, sae.site, sae.d_in, sae.d_sae) == (kind, "resid_pre of layer 1", D_IN, D_SAE)
    x = torch.randn(4, 3, D_IN, generator=torch.Generator().manual_seed(1))
    lists = {name: value.double().tolist() for name, value in weights.items()}
    features, back = sae.encode(x), sae.reconstruct(x)
    active = set()
    for row, position in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        f, given_back = by_hand(kind, lists, x[row, position].double().tolist(), 3, subtract)
        assert features[row, position].tolist() == pytest.approx(f, abs=1e-5)
        assert back[row, position].tolist() == pytest.approx(given_back, abs=1e-5)
        active.add(sum(value > 0 for value in f))
    assert max(active) <= (3 if kind == "topk" else D_SAE)
    assert min(active) < D_SAE


def test_decoder_norms_that_rescale_are_folded(tmp_path: Path) -> None:
    weights = tensors(threshold=False)
    cfg = config(architecture="topk", k=2, rescale_acts_by_decoder_norm=True)
    sae = read_sae(folder_with(tmp_path / "sae", cfg, weights))
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
    norms = weights["W_dec"].norm(dim=-1)
    scaled = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    largest, where = scaled.topk(2)
    f = torch.zeros_like(scaled).scatter(-1, where, largest.relu())
    torch.testing.assert_close(sae.encode(x), f)
    torch.testing.assert_close(sae.reconstruct(x), (f / norms) @ weights["W_dec"] + weights["b_dec"])


def test_a_centred_one_sees_no_mean_and_keeps_it(tmp_path: Path) -> None:
    metadata = {
        "hook_name": "blocks.0.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    plain = read_sae(folder_with(tmp_path / "a", config(), tensors()))
    centred = read_sae(folder_with(tmp_path / "b", config(metadata=metadata), tensors()))
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
    mean = x.mean(-1, keepdim=True)
    torch.testing.assert_close(centred.encode(x), plain.encode(x - mean))
    torch.testing.assert_close(centred.reconstruct(x), plain.reconstruct(x - mean) + mean)


def test_configurations_of_before_version_6(tmp_path: Path) -> None:
    old = {"hook_point": "blocks.2.hook_mlp_out", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    sae = read_sae(folder_with(tmp_path / "sae", {**old, "architecture": "standard", "d_sae": D_SAE}, tensors()))
    assert (sae.kind, sae.k, sae.hook, sae.layer, sae.subtracts_b_dec) == ("topk", 4, "mlp_out", 2, True)


def test_our_own_words(tmp_path: Path) -> None:
    own = {"kind": "ReLU", "hook": "attn_out", "layer": 3, "apply_b_dec_to_input": False}
    sae = read_sae(folder_with(tmp_path / "sae", own, tensors(), "sae.safetensors"))
    assert (sae.kind, sae.hook, sae.layer, sae.subtracts_b_dec, sae.threshold) == ("relu", "attn_out", 3, False, None)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_what_is_saved_comes_back(kind: str, tmp_path: Path) -> None:
    weights = tensors(threshold=kind == "jumprelu")
    sae = SparseAutoencoder("x", kind, "mlp_out", 1, **weights, k=2 if kind == "topk" else None, model="some")
    save_sae(sae, tmp_path / "new")
    again = read_sae(tmp_path / "new")
    x = torch.randn(5, D_IN)
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again.reconstruct(x), sae.reconstruct(x))
    assert replace(again, name="x", **weights) == sae


class StandIn:
    """As much of an autoencoder of SAELens as is used."""

    def __init__(self, cfg: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.cfg = SimpleNamespace(to_dict=lambda: cfg)
        self.weights = {name: torch.nn.Parameter(value) for name, value in weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights


def package(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[tuple[str, str]]:
    """A package sae_lens whose releases are all `found`, or raise it; gives what it was asked for."""
    asked = []

    class SAE:
        @staticmethod
        def from_pretrained(release: str, sae_id: str) -> Any:
            asked.append((release, sae_id))
            if isinstance(found, Exception):
                raise found
            return found

    module = ModuleType("sae_lens")
    module.SAE = SAE  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_lens", module)
    return asked


def test_a_release_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = StandIn(config(), tensors())
    same = read_sae(folder_with(tmp_path / "sae", config(), tensors()))
    x = torch.randn(5, D_IN)
    for found in (stand_in, (stand_in, {}, None)):  # as since version 6, and as before
        asked = package(monkeypatch, found)
        sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre/more")
        assert asked == [("gpt2-small-res-jb", "blocks.8.hook_resid_pre/more")]
        assert torch.equal(sae.encode(x), same.encode(x))
        assert not sae.encode(x).requires_grad
        assert (sae.name, sae.model) == ("gpt2-small-res-jb/blocks.8.hook_resid_pre/more", "some")


def test_a_release_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, ValueError("no such release"))
    with pytest.raises(ModelError, match=r"^patch\.sae=a/b cannot be loaded by SAELens \(no such release\)"):
        load_sae("a/b")
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ModelError) as error:
        load_sae("a/b")
    said = str(error.value)
    assert said.startswith("patch.sae=a/b needs SAELens, which cannot be imported here")
    assert "SAE.from_pretrained('a', 'b').save_model('FOLDER'), and give patch.path=FOLDER" in said
    with pytest.raises(ModelError, match=r"^patch\.sae=nothing is not known: choose pocket, give a release"):
        load_sae("nothing")


@pytest.mark.parametrize(
    ("changes", "weights", "said"),
    [
        ({"architecture": "gated"}, {}, "the kind gated is not supported: choose from relu, jumprelu, topk"),
        ({"activation_fn": "tanh"}, {}, "the activation function tanh is not supported"),
        ({"architecture": "topk"}, {}, "a topk autoencoder needs k in its cfg.json"),
        ({"architecture": "topk", "k": 11}, {}, "k is 11, more than its 10 features"),
        ({"normalize_activations": "layer_norm"}, {}, "normalize_activations=layer_norm is not supported"),
        ({"finetuning_scaling_factor": True}, {}, "finetuning_scaling_factor is not supported"),
        ({"metadata": {"hook_name": "blocks.3.attn.hook_z"}}, {}, "a place that is not supported (at blocks.3.attn"),
        ({"metadata": {}}, {}, "a place that is not supported (cfg.json does not say where (hook_name))"),
        ({"metadata": {"hook": "resid_pre"}}, {}, "a place that is not supported (at resid_pre, layer None)"),
        ({"metadata": {"hook_name": "blocks.0.hook_mlp_out", "hook_head_index": 2}}, {}, "it stands at one head"),
        ({}, {"threshold": None}, "the jumprelu autoencoder has no tensor threshold"),
        ({}, {"W_dec": torch.zeros(6, 10)}, "W_dec has shape (6, 10), but W_enc's 6 × 10 asks for (10, 6)"),
        ({}, {"W_enc": torch.zeros(10)}, "W_enc has shape (10,); it needs d_in × d_sae"),
        ({"d_in": 7}, {}, "cfg.json says d_in is 7, but W_enc is 6 × 10"),
        ({}, {"b_dec": torch.full((6,), float("nan"))}, "a tensor holds numbers that are not finite"),
    ],
)
def test_what_cannot_be_used_is_refused(
    changes: dict[str, Any], weights: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    given = {name: value for name, value in (tensors() | weights).items() if value is not None}
    with pytest.raises(ModelError) as error:
        read_sae(folder_with(tmp_path / "sae", config(**changes), given))
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sae"))
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no sae\.safetensors or sae_weights\.safetensors$"):
        read_sae(tmp_path)
    folder = folder_with(tmp_path / "sae", "{", tensors())
    with pytest.raises(ModelError, match=r"its cfg\.json is damaged"):
        read_sae(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(ModelError, match=r"its cfg\.json is damaged \(it holds no object\)"):
        read_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(ModelError, match=r"it has no cfg\.json$"):
        read_sae(folder)
    (folder / "cfg.json").write_text("{}")
    (folder / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"its sae_weights\.safetensors is damaged"):
        read_sae(folder)


# The bundled one.

README = BUNDLED["pocket"] / "README.md"


def test_the_bundled_one_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED["pocket"].iterdir()) < 1_000_000
    sae = load_sae()
    assert (sae.name, sae.model, sae.kind, sae.d_in) == ("pocket", "pocket", "topk", 128)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.d_sae))


@pytest.mark.parametrize(
    "name",
    ["factual_recall", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ioi", "greater_than", "docstring"))],
)
def test_the_numbers_of_its_readme(name: str) -> None:
    """On the same held-out prompts, through the package's own engine instead of hooks on the Hugging Face model."""
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", README.read_text(), re.MULTILINE)
    n_prompts, explained, l0, plain, spliced, _, _, kl = (float(cell) for cell in row.split(" | "))
    model = Experiment.build(task=name, size=2).model
    pairs = [
        Pair(
            clean=list(pair.clean),
            corrupted=list(pair.corrupted[0]),
            answers=list(map(list, pair.answers)),
            wrong_answers=list(map(list, pair.wrong_answers)),
            position=list(pair.positions),
        )
        for pair in held_out_pairs(name, Tokenizer(model.tokenizer, model.vocabulary_size))
    ]
    assert len(pairs) == n_prompts
    for metric, of_model, expected in (("logit_diff", plain, spliced), ("kl_div", 0.0, kl)):
        one = Experiment.build(model, Task(name, pairs, metric))
        survey = Survey(one, load_sae())
        survey.add(one, {"clean": ResumedRun(one, one.clean)})
        found = survey.result(1.0, 0.0)
        assert found.metric == pytest.approx(expected, abs=0.006)
        assert found.explained == pytest.approx(explained, abs=6e-5)
        assert found.l0 == pytest.approx(l0, abs=0.051)
        columns = one.metric.columns
        logits = one.clean_logits if columns is None else one.clean_logits[:, columns]
        assert float(one.metric.value(logits)) == pytest.approx(of_model, abs=0.006)
