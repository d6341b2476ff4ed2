"""Logic gates as transformers of one layer and two heads, built by hand: python -m scripts.gates

Two bits come as two tokens, `A=0` or `A=1` and then `B=0` or `B=1`. Head 0 copies bit A, head 1 bit B; the MLP combines
them; the logits say `false` or `true`.

Both heads attend everywhere alike (their queries and keys are 0), and only their values read anything. Under causal
attention the second position sees both tokens, so each head's mean is half its bit, and its output weight doubles it.
The MLP has h = bit A + bit B before it and writes

    OR:  2·(relu(h) − relu(h − 1)) − 1        AND:  2·relu(h − 1) − 1

that is −1 or 1. OR saturates: one bit is enough, which is what makes it hard for a greedy search. As in the original
ACDC's OR gate (acdc/logic_gates/utils.py), except that the bits really come from the input.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.files import write_atomically
from acdc.model.load import COMPILED, make_native, save_native

GATES = ("gate_or", "gate_and")
TOKENS = {"A=0": 0, "A=1": 1, "B=0": 2, "B=1": 3}
OUTPUTS = {"false": 0, "true": 1}

# Directions of the residual stream.
BIT_A, BIT_B, HEAD_A, HEAD_B, RESULT = range(5)

CONFIG = {
    "n_layers": 1,
    "n_heads": 2,
    "d_model": 5,
    "d_head": 1,
    "d_mlp": 2,
    "n_ctx": 2,
    "d_vocab": len(TOKENS),
    "d_vocab_out": len(OUTPUTS),
    "act_fn": "relu",
    "attention_dir": "causal",
    "normalization_type": None,
}

README = """# {name}

A logic gate as a transformer of one layer and two heads, a TransformerLens-native model. Built by hand by
`python -m scripts.gates`; the docstring of `scripts/gates.py` explains the weights.

Tokens: {tokens}. Logits: {outputs}, 1 for what holds and −1 for what does not.
"""


def build_gate(name: str) -> Any:
    """The native bridge of `gate_or` or `gate_and`."""
    return make_native(CONFIG, _weights(name))


def _weights(name: str) -> dict[str, Tensor]:
    """Parameters that are not 0; linear layers keep `out in`."""
    d_model, d_mlp = 5, 2
    embedding = torch.zeros(len(TOKENS), d_model)
    embedding[TOKENS["A=1"], BIT_A] = 1
    embedding[TOKENS["B=1"], BIT_B] = 1
    value = torch.zeros(2, d_model)  # one dimension a head
    value[0, BIT_A] = value[1, BIT_B] = 1
    write = torch.zeros(d_model, 2)
    write[HEAD_A, 0] = write[HEAD_B, 1] = 2  # half the attention is on the other token
    read = torch.zeros(d_mlp, d_model)
    read[:, [HEAD_A, HEAD_B]] = 1
    combine = torch.zeros(d_model, d_mlp)
    combine[RESULT] = torch.tensor([2.0, -2.0] if name == "gate_or" else [0.0, 2.0])
    offset = torch.zeros(d_model)
    offset[RESULT] = -1
    unembedding = torch.zeros(len(OUTPUTS), d_model)
    unembedding[OUTPUTS["false"], RESULT], unembedding[OUTPUTS["true"], RESULT] = -1, 1
    return {
        "tok_embed.weight": embedding,
        "layers.0.attn.v.weight": value,
        "layers.0.attn.o.weight": write,
        "layers.0.mlp.fc_in.weight": read,
        "layers.0.mlp.fc_in.bias": torch.tensor([0.0, -1.0]),
        "layers.0.mlp.fc_out.weight": combine,
        "layers.0.mlp.fc_out.bias": offset,
        "head.weight": unembedding,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the logic gates.")
    parser.add_argument("--output", type=Path, default=COMPILED, help="folder to write")
    output = parser.parse_args().output
    for name in GATES:
        save_native(build_gate(name), output / name, CONFIG)
        tokens, outputs = (", ".join(f"{word} is {i}" for word, i in ids.items()) for ids in (TOKENS, OUTPUTS))
        write_atomically(output / name / "README.md", README.format(name=name, tokens=tokens, outputs=outputs))
        print(output / name)


if __name__ == "__main__":
    main()
