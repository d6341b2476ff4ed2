"""Compile the two tracr programs of the ACDC paper into models of this project: python -m scripts.compile_tracr

    reverse       reverse(tokens), words 1 2 3:                [BOS 1 2 2 3] → 3 2 2 1
    proportion    the share of "x" so far, words w x y z:      [BOS w x y x] → 0 1/2 1/3 1/2

tracr (Lindner et al. 2023, arXiv:2301.05062) turns a RASP program into the weights of a transformer without layer norm
and biases, whose residual stream has a named direction for every value of every variable. Needs the extra `tracr`:
pip install "acdc[tracr]". The result is committed in `acdc/model/compiled/`, so nobody else needs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.errors import ConfigError
from acdc.files import write_atomically
from acdc.model.load import COMPILED, make_native, save_native

MAX_LENGTH = 4  # tokens behind BOS
BOS = "BOS"
PAD = "PAD"

README = """# {name}

The program {program} compiled to weights by tracr, as a TransformerLens-native model
({n_layers} layers, {n_heads} head, width {d_model}). Made by `python -m scripts.compile_tracr` with {version}.
It reads up to {max_length} words behind BOS.

| token | id |
|---|---|
{tokens}

Logits: {logits}.

tracr is © DeepMind Technologies Limited, Apache License 2.0 (https://github.com/google-deepmind/tracr); these weights
are its output for a program of its library (`tracr.compiler.lib`) and are passed on under the same licence.
"""


@dataclass(frozen=True)
class Program:
    """What is compiled. `build` gives the RASP program; `words` are the inputs besides BOS and PAD."""

    name: str
    text: str
    words: frozenset[Any]
    build: Callable[[], Any]


def _reverse() -> Any:
    from tracr.compiler import lib
    from tracr.rasp import rasp

    return lib.make_reverse(rasp.tokens)


def _proportion() -> Any:
    from tracr.compiler import lib
    from tracr.rasp import rasp

    return lib.make_frac_prevs((rasp.tokens == "x").named("is_x"))


PROGRAMS = (
    Program("tracr_reverse", "`make_reverse(tokens)`", frozenset({1, 2, 3}), _reverse),
    Program("tracr_proportion", '`make_frac_prevs(tokens == "x")`', frozenset("wxyz"), _proportion),
)


def compile_program(program: Program, max_length: int = MAX_LENGTH) -> tuple[Any, dict[str, Any], str]:
    """The native bridge, the keyword arguments of its configuration, and its README.

    Raises
    ------
    ConfigError: tracr is not installed.
    """
    try:
        from tracr.compiler import compiling
    except ImportError as error:
        raise ConfigError(f'tracr cannot be imported ({error}): pip install "acdc[tracr]"') from error
    rasp_program = program.build()
    compiled = compiling.compile_rasp_to_model(
        rasp_program,
        vocab=set(program.words),
        max_seq_len=max_length,
        causal=False,
        compiler_bos=BOS,
        compiler_pad=PAD,
    )
    if not hasattr(compiled.output_encoder, "encoding_map"):  # a number comes out, not one of some values
        outputs = [rasp_program.label]
        logits = "one column, the proportion"
    else:
        values = sorted(compiled.output_encoder.encoding_map.items(), key=lambda item: item[1])
        outputs = [f"{rasp_program.label}:{value}" for value, _ in values]
        logits = f"one column per output, {', '.join(str(value) for value, _ in values)}; 1 for what comes out, else 0"
    unembedding = np.zeros((len(compiled.residual_labels), len(outputs)), np.float32)
    for column, label in enumerate(outputs):
        unembedding[compiled.residual_labels.index(label), column] = 1
    config = _config(compiled, len(outputs))
    tokens = sorted(compiled.input_encoder.encoding_map.items(), key=lambda item: item[1])
    readme = README.format(
        program=program.text,
        version=_version(),
        max_length=max_length,
        tokens="\n".join(f"| {word} | {index} |" for word, index in tokens),
        logits=logits,
        **config | {"name": program.name},
    )
    return make_native(config, _weights(compiled, unembedding)), config, readme


def _config(compiled: Any, n_outputs: int) -> dict[str, Any]:
    shape = compiled.model_config
    vocabulary, d_model = compiled.params["token_embed"]["embeddings"].shape
    return {
        "n_layers": shape.num_layers,
        "n_heads": shape.num_heads,
        "d_model": d_model,
        "d_head": shape.key_size,
        "d_mlp": shape.mlp_hidden_size,
        "n_ctx": compiled.params["pos_embed"]["embeddings"].shape[0],
        "d_vocab": vocabulary,
        "d_vocab_out": n_outputs,
        "act_fn": "relu",
        "attention_dir": "bidirectional",
        "normalization_type": None,
    }


def _weights(compiled: Any, unembedding: np.ndarray) -> dict[str, Tensor]:
    """tracr's parameters by the names of the native model, whose linear layers keep `out in`."""
    parts = {"attn/query": "attn.q", "attn/key": "attn.k", "attn/value": "attn.v", "attn/linear": "attn.o"}
    parts |= {"mlp/linear_1": "mlp.fc_in", "mlp/linear_2": "mlp.fc_out"}
    arrays = {
        "tok_embed.weight": compiled.params["token_embed"]["embeddings"],
        "pos.weight": compiled.params["pos_embed"]["embeddings"],
        "head.weight": unembedding.T,
    }
    for layer in range(compiled.model_config.num_layers):
        for theirs, ours in parts.items():
            values = compiled.params[f"transformer/layer_{layer}/{theirs}"]
            arrays[f"layers.{layer}.{ours}.weight"] = values["w"].T
            arrays[f"layers.{layer}.{ours}.bias"] = values["b"]
    return {name: torch.tensor(np.array(array, np.float32)) for name, array in arrays.items()}


def _version() -> str:
    from importlib.metadata import version

    return f"tracr-pypi {version('tracr-pypi')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the tracr programs into models of this project.")
    parser.add_argument("--output", type=Path, default=COMPILED, help="folder to write")
    output = parser.parse_args().output
    for program in PROGRAMS:
        bridge, config, readme = compile_program(program)
        save_native(bridge, output / program.name, config)
        write_atomically(output / program.name / "README.md", readme)
        print(f"{output / program.name}: {config['n_layers']} layers, width {config['d_model']}")


if __name__ == "__main__":
    main()
