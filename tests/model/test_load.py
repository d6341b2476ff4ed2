"""Loading: what is supported is right, everything else is refused in one line; tokenizers; broken folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from checkpoints import WORDS, make_checkpoint, make_native, save_tokenizer

from acdc.errors import ConfigError, ModelError, TaskError
from acdc.experiment import Experiment
from acdc.model import ModelSettings, load_model
from acdc.model.check import check_parts
from acdc.model.forward import run
from acdc.model.load import load_native, save_native
from acdc.tasks.base import Pair, Task, Tokenizer

TOKENS = torch.tensor([[2, 5, 3, 7, 4, 1, 9, 6], [9, 2, 2, 6, 1, 0, 3, 8]])
NAMES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = NAMES | {"num_key_value_heads": 1}
GPT: dict[str, Any] = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def save(model_class: Any, config: Any, folder: Path) -> Path:
    """A random checkpoint, with biases and norms drawn too."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(
                0.2 * torch.randn_like(parameter) if parameter.ndim > 1 else 0.1 * torch.randn_like(parameter)
            )
            assert torch.isfinite(parameter).all(), name
    model.save_pretrained(folder)
    return folder


def load(path: Path, **settings: Any) -> tuple[Any, Any]:
    return load_model(ModelSettings(name="local", path=str(path), device="cpu", **settings))


SUPPORTED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2": lambda: (hf.Qwen2ForCausalLM, hf.Qwen2Config(**GROUPED)),
    "mistral": lambda: (hf.MistralForCausalLM, hf.MistralConfig(**GROUPED, sliding_window=None)),
    "llama with biases": lambda: (
        hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True)
    ),
    "llama 3 positions": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED, rope_parameters=LLAMA3_ROPE)),
    "llama, wide heads": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED, head_dim=12)),
    "gpt-neox, all rotary": lambda: (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**NAMES, rotary_pct=1.0)),
    "gpt-2 with ReLU": lambda: (
        hf.GPT2LMHeadModel, hf.GPT2Config(**GPT, n_embd=16, n_layer=2, n_head=2, activation_function="relu")
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "gemma2": (lambda: (hf.Gemma2ForCausalLM, hf.Gemma2Config(**GROUPED, head_dim=8)), "soft-capping"),
    "gemma3": (lambda: (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig(**GROUPED, head_dim=8)), "rotary"),
    "gemma": (lambda: (hf.GemmaForCausalLM, hf.GemmaConfig(**GROUPED, head_dim=8)), "GemmaRMSNorm"),
    "qwen3": (lambda: (hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED, head_dim=8)), "norm"),
    "mixtral": (lambda: (hf.MixtralForCausalLM, hf.MixtralConfig(**GROUPED, num_local_experts=2)), "experts"),
    "olmo2": (lambda: (hf.Olmo2ForCausalLM, hf.Olmo2Config(**GROUPED)), "ln1|norm"),
    "phi": (lambda: (hf.PhiForCausalLM, hf.PhiConfig(**NAMES)), "ln2|norm"),
    "phi3": (lambda: (hf.Phi3ForCausalLM, hf.Phi3Config(**GROUPED)), "norm"),
    "gptj": (
        lambda: (
            hf.GPTJForCausalLM,
            hf.GPTJConfig(**GPT, n_embd=16, n_layer=2, n_head=2, n_inner=32, n_positions=32, rotary_dim=4),
        ),
        "rotary",
    ),
    "gpt_neo": (
        lambda: (
            hf.GPTNeoForCausalLM,
            hf.GPTNeoConfig(
                **GPT, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
                max_position_embeddings=32, window_size=4,
            ),
        ),
        "attn|local",
    ),
    "bloom": (lambda: (hf.BloomForCausalLM, hf.BloomConfig(**GPT, hidden_size=16, n_layer=2, n_head=2)), "alibi"),
    "falcon": (
        lambda: (
            hf.FalconForCausalLM, hf.FalconConfig(**GPT, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        ),
        "attn",
    ),
    "bert": (lambda: (hf.BertForMaskedLM, hf.BertConfig(**NAMES)), "attn|Bert"),
    "t5": (
        lambda: (hf.T5ForConditionalGeneration, hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                                            vocab_size=20)),
        "encoder-decoder",
    ),
    "gpt-2 with tanh": (
        lambda: (
            hf.GPT2LMHeadModel, hf.GPT2Config(**GPT, n_embd=16, n_layer=2, n_head=2, activation_function="tanh")
        ),
        "tanh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPPORTED)
def test_further_members_of_the_families(name: str, tmp_path: Path) -> None:
    path = save(*SUPPORTED[name](), tmp_path / "model")
    model, bridge = load(path)
    with torch.no_grad():
        expected = hf.AutoModelForCausalLM.from_pretrained(path).eval()(TOKENS).logits
    ours = model.unembed(run(model, TOKENS, torch.tensor([8, 8]))[1])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    check_parts(model, bridge, TOKENS)


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, missing = REFUSED[name]
    path = save(*make(), tmp_path / "model")
    with pytest.raises(ModelError, match="not supported") as caught:
        check_parts(*load(path), TOKENS)
    said = str(caught.value).replace(str(path), "")
    assert "\n" not in said
    assert any(word in said for word in missing.split("|")), said


@pytest.mark.parametrize("window", [1, 4, 7, 8, 9])
def test_one_attention_window_for_all_layers(window: int, tmp_path: Path) -> None:
    path = save(hf.MistralForCausalLM, hf.MistralConfig(**GROUPED, sliding_window=window), tmp_path / "model")
    model, bridge = load(path)
    with torch.no_grad():
        expected = hf.AutoModelForCausalLM.from_pretrained(path).eval()(TOKENS).logits
    ours = model.unembed(run(model, TOKENS, torch.tensor([8, 8]))[1])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    check_parts(model, bridge, TOKENS)


def test_windows_that_differ_from_layer_to_layer_are_refused_where_they_matter(tmp_path: Path) -> None:
    config = hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    path = save(hf.Qwen2ForCausalLM, config, tmp_path / "model")
    for length in (4, 5):
        pair = Pair(TOKENS[0, :length].tolist(), TOKENS[1, :length].tolist(), [6], [7])
        if length == 5:
            with pytest.raises(TaskError, match=r"5 tokens, more than the 4 .* attention window") as caught:
                Experiment.build(str(path), Task("ids", [pair], "logit_diff"))
            assert "\n" not in str(caught.value)
            return
        one = Experiment.build(str(path), Task("ids", [pair], "logit_diff"))
        with torch.no_grad():
            own = hf.AutoModelForCausalLM.from_pretrained(path).eval()(TOKENS[:1, :4]).logits[:, -1]
        torch.testing.assert_close(one.clean_logits, own, rtol=0, atol=1e-4)


def test_a_checkpoint_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    for family in ("gpt2", "llama", "gpt_neox"):
        model, _ = load(make_checkpoint(family, tmp_path))
        assert model.tokenizer is None
        pair = Pair([2, 3, 4], [2, 5, 4], [6], [7])
        assert Experiment.build(model, Task("ids", [pair], "kl_div")).pairs[0].clean == (2, 3, 4)


@pytest.mark.parametrize("prepends", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_prompts_get_the_tokenizers_own_special_tokens(family: str, prepends: bool, tmp_path: Path) -> None:
    """Neither more (the bridge would always prepend BOS) nor less."""
    path = make_checkpoint(family, tmp_path)
    save_tokenizer(path)
    if prepends:
        from tokenizers.processors import TemplateProcessing

        tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(path)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save_pretrained(path)
    model, _ = load(path)
    cat = WORDS.index("cat")
    assert Tokenizer(model.tokenizer, 10).encode("cat") == ([0, cat] if prepends else [cat])
    assert Tokenizer(model.tokenizer, 10, prepend_bos=True).encode("cat") == [0, cat]
    assert Tokenizer(model.tokenizer, 10, prepend_bos=False).encode("cat") == [cat]


def test_the_storytellers_tokenizer(shared: Path) -> None:
    path = shared / "data/models/stories260K"
    own = hf.AutoTokenizer.from_pretrained(path)
    model, _ = load(path)
    text = "Once upon a time, there was a little girl named Lily."
    assert Tokenizer(model.tokenizer, model.vocabulary_size).encode(text) == own(text)["input_ids"]


def _truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])


def _edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: shutil.rmtree(path), "no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is damaged"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is damaged"),
        (lambda path: (path / "config.json").write_text("{}"), "cannot be loaded"),
        (lambda path: (path / "model.safetensors").unlink(), "cannot be loaded"),
        (_truncate, "cannot be loaded"),
        (lambda path: _edit(path, model_type="nothing", architectures=["Nothing"]), "cannot be loaded"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (lambda path: _edit(path, architecture="TransformerLensNative"), "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path, tokenizer=True)
    damage(path)
    with pytest.raises(ModelError, match=said) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"n_embd": 12}, {"vocab_size": 11}])
def test_weights_that_do_not_fit_the_configuration_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    """Missing weights would otherwise be drawn at random, and the check would not notice."""
    path = make_checkpoint("gpt2", tmp_path)
    _edit(path, **change)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_name_that_cannot_be_fetched_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="needs a network") as caught:
        load_model(ModelSettings(name="no-such-model-of-anyone", device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "float8"}, "choose one of float32, float64, bfloat16, float16"),
        ({"name": "local"}, "model.path"),
        ({"name": "local", "path": ""}, "model.path"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ModelSettings(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta-physics"])
def test_an_unknown_device_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(ConfigError, match=f"model.device={device}") as caught:
        ModelSettings(device=device).resolved_device()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["layer_norm", "attention_only", "bidirectional"])
def test_native_folder_and_back(kind: str, tmp_path: Path) -> None:
    bridge = make_native(kind)
    options = {
        "layer_norm": {"normalization_type": "LN", "act_fn": "gelu_new"},
        "attention_only": {"normalization_type": None, "attn_only": True},
        "bidirectional": {"normalization_type": None, "attention_dir": "bidirectional", "act_fn": "relu"},
    }[kind]
    shape = {"d_model": 8, "d_head": 4, "n_heads": 2, "n_layers": 2, "d_mlp": 16, "n_ctx": 16, "d_vocab": 10}
    save_native(bridge, tmp_path / "native", shape | options)
    torch.testing.assert_close(load_native(tmp_path / "native")(TOKENS), bridge(TOKENS))
    model, loaded = load(tmp_path / "native")
    assert model.tokenizer is None
    torch.testing.assert_close(
        model.unembed(run(model, TOKENS, torch.tensor([8, 8]))[1]), bridge(TOKENS), rtol=0, atol=1e-4
    )
    check_parts(model, loaded, TOKENS)


def test_tf32_is_for_cuda() -> None:
    with pytest.raises(ConfigError, match=r"model\.tf32=true has no effect on cpu") as caught:
        load_model(ModelSettings(device="cpu", tf32=True))
    assert "\n" not in str(caught.value)
