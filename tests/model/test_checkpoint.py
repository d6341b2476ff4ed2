"""What a checkpoint folder may not do (run code, reach for the network) and may not hide (weights of its own)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from checkpoints import make_checkpoint, make_model, save_tokenizer
from commands import make_case
from safetensors.torch import load_file, save_file

from acdc.errors import ModelError
from acdc.experiment import Experiment
from acdc.model import ModelSettings, load_model
from acdc.model.forward import run
from acdc.tasks.base import Pair, Task

IDS = Task("ids", [Pair([2, 3, 4], [2, 5, 4], [6], [7])], "logit_diff")

slow = pytest.mark.slow  # a process of its own


def load(path: Path) -> Any:
    return load_model(ModelSettings(name="local", path=str(path), device="cpu"))[0]


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leave_code(path: Path, mark: Path) -> None:
    """A module that every `auto_map` may name; to import it leaves a mark."""
    (path / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import GPT2Config as Config, GPT2LMHeadModel as Model, PreTrainedTokenizerFast as Words\n"
    )


CODE: dict[str, Any] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
# What is changed in config.json and in tokenizer_config.json, and whether the model can do without its code.
BRINGS_CODE: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "unknown architecture": ({"model_type": "evil", "architectures": ["Evil"], "auto_map": CODE}, {}, False),
    "code of another's": ({"model_type": "evil", "auto_map": {"AutoConfig": "some/one--evil.Config"}}, {}, False),
    "known architecture": ({"auto_map": CODE}, {}, True),
    "another's architecture": ({"auto_map": CODE, "architectures": ["OpenELMForCausalLM"]}, {}, True),
    "original architecture": ({"auto_map": CODE, "original_architecture": "BaiChuanForCausalLM"}, {}, True),
    "tokenizer": ({}, {"auto_map": {"AutoTokenizer": ["evil.Words", None]}, "tokenizer_class": "Evil"}, False),
    "fast tokenizer": ({}, {"auto_map": {"AutoTokenizer": [None, "evil.Words"]}}, True),
}


@pytest.mark.parametrize("name", BRINGS_CODE)
def test_code_in_a_folder_is_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokenizer, does_without = BRINGS_CODE[name]
    path = make_checkpoint("gpt2", tmp_path, tokenizer=True)
    mark = tmp_path / "mark"
    leave_code(path, mark)
    edit(path / "config.json", **config)
    edit(path / "tokenizer_config.json", **tokenizer)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    said = load(path).notes if does_without else [refused(path)]
    assert sum("never run" in line for line in said) == 1
    assert not mark.exists()
    assert not any(module.startswith("transformers_modules") for module in sys.modules)


@pytest.mark.parametrize("stdin", ["y\n" * 20, pytest.param("", marks=slow), pytest.param(None, marks=slow)])
def test_no_question_is_asked_on_the_command_line(stdin: str | None, tmp_path: Path) -> None:
    case = make_case(tmp_path)
    mark, modules = tmp_path / "mark", tmp_path / "modules"
    leave_code(case.model, mark)
    edit(case.model / "config.json", model_type="evil", architectures=["Evil"], auto_map=CODE)
    ended = subprocess.run(
        [sys.executable, "-m", "acdc", *case.arguments(hydra__run__dir=tmp_path / "out")],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HF_MODULES_CACHE": str(modules)},
    )
    assert ended.returncode == 2
    said = (ended.stdout + ended.stderr).strip()
    assert "needs code of its own" in said
    assert "Traceback" not in said
    assert "[y/N]" not in said
    assert not mark.exists()
    assert not list(modules.rglob("*evil*"))
    assert not (tmp_path / "out").exists()


def test_a_pickle_of_weights_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "mark"), "w")

    path = make_checkpoint("gpt2", tmp_path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    load(path)
    torch.save({**state, "transformer.wte.weight": Evil()}, path / "pytorch_model.bin")
    refused(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "kind",
    ["without tokenizer", *(pytest.param(kind, marks=slow) for kind in ("pocket", "with tokenizer", "no weights"))],
)
def test_a_folder_is_loaded_without_network_and_leaves_the_process_online(kind: str, tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, tokenizer=kind == "with tokenizer")
    if kind == "no weights":
        (path / "model.safetensors").unlink()
    settings = "ModelSettings()" if kind == "pocket" else f"ModelSettings('local', {str(path)!r})"
    program = f"""
import os, socket
def connect(*_, **__):
    print('NETWORK', flush=True)
    raise OSError('no network here')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = connect
before = dict(os.environ)
from acdc.errors import ModelError
from acdc.model import ModelSettings, load_model
try:
    load_model({settings})
except ModelError:
    assert {kind == "no weights"}
import huggingface_hub.constants
assert not huggingface_hub.constants.HF_HUB_OFFLINE
assert 'HF_HUB_OFFLINE' not in os.environ
print('DONE')
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=env)
    assert ended.stdout.split() == ["DONE"], ended.stdout + ended.stderr


def test_loading_leaves_the_processes_messages_as_they_were() -> None:
    from transformers.utils import logging

    load_model(ModelSettings(device="cpu"))
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    load_model(ModelSettings(device="cpu"))
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()


def add(path: Path, **weights: torch.Tensor) -> None:
    file = path / "model.safetensors"
    save_file({**load_file(file), **{k.replace("__", "."): w for k, w in weights.items()}}, file, {"format": "pt"})


def shard(path: Path) -> None:
    """The same weights in two files with an index."""
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, path / file, {"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


LEFT_OVER: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "layers of GPT-2": ("gpt2", lambda path: edit(path / "config.json", n_layer=1), "h.1."),
    "layers of Llama": ("llama", lambda path: edit(path / "config.json", num_hidden_layers=1), "layers.1."),
    "layers of GPT-NeoX": ("gpt_neox", lambda path: edit(path / "config.json", num_hidden_layers=1), "layers.1."),
    "LoRA": ("gpt2", lambda path: add(path, transformer__h__0__mlp__c_fc__lora_A__weight=torch.ones(2, 8)), "lora_A"),
    "IA3": ("llama", lambda path: add(path, model__layers__0__mlp__down_proj__ia3_l=torch.ones(1, 8)), "ia3_l"),
    "an adapter": ("gpt2", lambda path: add(path, transformer__h__1__adapter__down__bias=torch.ones(2)), "adapter"),
    "a classifier": ("llama", lambda path: add(path, score__weight=torch.ones(2, 8)), "score.weight"),
    "a value head": ("gpt2", lambda path: add(path, v_head__summary__weight=torch.ones(1, 8)), "v_head.summary"),
}  # fmt: skip


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", LEFT_OVER)
def test_weights_that_would_be_left_out_are_refused_by_name(name: str, sharded: bool, tmp_path: Path) -> None:
    family, change, named = LEFT_OVER[name]
    path = make_checkpoint(family, tmp_path)
    change(path)
    if sharded:
        shard(path)
    said = refused(path)
    assert "left out" in said
    assert named in said


@pytest.mark.parametrize(
    "model_class", [hf.GPT2ForSequenceClassification, hf.GPT2ForTokenClassification, hf.GPT2DoubleHeadsModel]
)
def test_a_model_with_another_head_is_refused(model_class: Any, tmp_path: Path) -> None:
    config = hf.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model_class(config).save_pretrained(tmp_path / "head")
    assert "head of another model" in refused(tmp_path / "head")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapters_folder_is_refused(beside: bool, tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    (path / "adapter_config.json").write_text("{}")
    if not beside:
        (path / "config.json").unlink()
    assert "merge the adapter" in refused(path)


def test_other_weights_that_are_not_used_are_noted(tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    without = Experiment.build(str(path), IDS)
    assert without.notes == ()
    add(path, transformer__extra__weight=torch.ones(3))
    one = Experiment.build(str(path), IDS)
    assert len(one.notes) == 1
    assert "transformer.extra.weight" in one.notes[0]
    torch.testing.assert_close(one.clean_logits, without.clean_logits)
    assert Experiment.build(one.model, IDS).notes == one.notes


def test_a_checkpoint_in_pieces_is_the_same_model(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path)
    shard(path)
    tokens = torch.tensor([[2, 5, 3]])
    with torch.no_grad():
        expected = make_model("llama")(tokens).logits
    model = load(path)
    torch.testing.assert_close(model.unembed(run(model, tokens, torch.tensor([3]))[1]), expected, rtol=0, atol=1e-5)


OPT: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 32, "word_embed_proj_dim": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
}  # fmt: skip
XGLM: dict[str, Any] = {
    "vocab_size": 20, "d_model": 16, "ffn_dim": 32, "num_layers": 1, "attention_heads": 2,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "OPT-350m's kind": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, do_layer_norm_before=False)), "norms stand behind"
    ),
    "OPT with projections": (lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT | {"word_embed_proj_dim": 8})), "projected"),
    "OPT without last norm": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, _remove_final_layer_norm=True)), "no last norm"
    ),
    "XGLM": (lambda: hf.XGLMForCausalLM(hf.XGLMConfig(**XGLM)), "W_pos"),
    "BART": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), "encoder-decoder"),
    "BART's decoder": (
        lambda: hf.BartForCausalLM(hf.BartConfig(**BART, is_encoder_decoder=False, is_decoder=True)), "does not know it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_wrong_with_an_architecture_is_said(name: str, tmp_path: Path) -> None:
    make, why = OTHERS[name]
    make().save_pretrained(tmp_path / "model")
    said = refused(tmp_path / "model")
    assert "not supported" in said
    assert why in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "nothing", "architectures": ["NothingForCausalLM"]}, "does not know model_type=nothing"),
        ({"model_type": None}, "no model_type"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ],
)
def test_configurations_that_cannot_be_read(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    edit(path / "config.json", **changes)
    assert said in refused(path)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_attn_scale": False}, {"parallel_attn_mlp": True}, {"use_normalization_before_and_after": True},
        {"scale_attn_by_inverse_layer_idx": True}, {"use_qk_norm": True}, {"rotary_adjacent_pairs": True},
        {"window_size": 2}, {"use_local_attn": True}, {"rotary_base": 10000.5}, {"no_such_setting": 1},
    ],
)  # fmt: skip
def test_settings_that_a_native_model_ignores_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    from checkpoints import make_native

    from acdc.model.load import save_native

    shape = {"d_model": 8, "d_head": 4, "n_heads": 2, "n_layers": 2, "d_mlp": 16, "n_ctx": 16, "d_vocab": 10}
    config: dict[str, Any] = {**shape, "normalization_type": None, "attn_only": True}
    save_native(make_native("attention_only"), tmp_path / "native", {**config, "use_attn_scale": True, "seed": 3})
    load(tmp_path / "native")
    edit(tmp_path / "native/config.json", **setting)
    said = refused(tmp_path / "native")
    assert next(iter(setting)) in said
    assert "ignores" in said


def test_a_tokenizers_folder_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    save_tokenizer(tmp_path / "words")
    assert "no config.json" in refused(tmp_path / "words")
