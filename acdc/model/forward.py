"""The transformer, written once: from the residual stream before one layer to that behind another.

Whoever runs a model is a visitor of this step: it looks at what passes a site, or puts something else in its place.
Only the two engines that exist to be fast write the step out again (`acdc.engine.resumed`, `acdc.engine.incremental`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acdc.ablation import Values
from acdc.graph import LETTERS
from acdc.model.parts import LanguageModel

# The sites of a layer, in the order in which it computes them. `attn_in` is the stream that all heads read; where each
# head has streams of its own, these are `q_input`, `k_input` and `v_input`, as TransformerLens calls them.
SITES = (
    "resid_pre",
    "attn_in",
    "q_input",
    "k_input",
    "v_input",
    "q",
    "k",
    "v",
    "pattern",
    "head_output",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "neuron",
    "mlp_out",
    "resid_post",
)


class Site(NamedTuple):
    """A place in a layer: one of `SITES`, and the layer's number."""

    kind: str
    layer: int


@runtime_checkable
class Visitor(Protocol):
    """Looks at the value of a site, or replaces it."""

    def __call__(self, site: Site, value: Tensor | None) -> Tensor | None:
        """What the run goes on with.

        None is nothing: what follows from it is not computed and reaches the next sites as None, and an output that is
        None adds nothing to the residual stream. So a visitor that gives None for what attention reads and stored
        values for what heads write saves the attention.
        """


def forward(
    model: LanguageModel,
    stream: Float[Tensor, "*batch row pos d_model"],
    at: Visitor,
    start: int = 0,
    stop: int | None = None,
    *,
    mask: Bool[Tensor, "#row #query #key"],
    positions: Int[Tensor, "... pos"] | None = None,
    heads: Callable[[int], Int[Tensor, " head"] | slice] | None = None,
) -> Float[Tensor, "... row pos d_model"]:
    """Run the layers from `start` up to `stop` (None is the last one's end).

    Parameters
    ----------
    stream: the residual stream before layer `start`, `... row pos d_model`.
    at: the visitor. Of the residual stream, and of what attention and MLPs read and write, it gets `... row pos
        d_model`; of heads `... head row pos d_head` and patterns `... head row query key`; of neurons `... row pos
        d_mlp`. `attn_out` comes without the layer's output bias, which belongs to the residual stream.
    mask: True where a query may not look, `row query key`.
    positions: what the position axis stands for, if not 0, 1, ...
    heads: given a layer, the heads that are run, each reading streams of its own: the sites `q_input`, `k_input` and
        `v_input`, `... head row pos d_model`, then stand in the place of `attn_in`. None runs all heads on one stream.

    Returns the residual stream behind the last layer that was run, `... row pos d_model`.
    """
    for i in range(start, len(model.layers) if stop is None else stop):
        layer = model.layers[i]
        stream = _present(at(Site("resid_pre", i), stream))
        some = slice(None) if heads is None else heads(i)
        projected: list[Tensor | None] = []
        shared = at(Site("attn_in", i), stream) if heads is None else None
        for letter in LETTERS:
            if heads is None:
                value = None if shared is None else layer.project_together(letter, shared, positions)
            else:
                read = at(Site(f"{letter}_input", i), stream.unsqueeze(-4))
                value = None if read is None else layer.project(letter, read, some)
            projected.append(at(Site(letter, i), value))
        q, k, v = projected
        pattern = at(Site("pattern", i), None if q is None or k is None else layer.attend(q, k, mask))
        z = at(Site("head_output", i), None if pattern is None or v is None else pattern @ v)
        written = at(Site("attn_out", i), None if z is None else layer.write_together(z, some))
        attended = stream if written is None else stream + written
        if layer.b_O is not None:
            attended = attended + layer.b_O
        attended = _present(at(Site("resid_mid", i), attended))
        if layer.mlp is not None:
            x = at(Site("mlp_in", i), stream if model.config.parallel_attn_mlp else attended)
            neurons = at(Site("neuron", i), None if x is None else layer.mlp.neurons(x))
            written = at(Site("mlp_out", i), None if neurons is None else layer.mlp.write(neurons))
            attended = attended if written is None else attended + written
        stream = _present(at(Site("resid_post", i), attended))
    return stream


def _present(stream: Tensor | None) -> Tensor:
    assert stream is not None, "a visitor may not take the residual stream away"
    return stream


class Record:
    """A visitor that keeps the values of some kinds of sites, a list each, in the order of the layers."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def __call__(self, site: Site, value: Tensor | None) -> Tensor | None:
        if site.kind in self.kinds and value is not None:
            self.values[site.kind].append(value)
        return value

    def __getitem__(self, kind: str) -> list[Tensor]:
        return self.values[kind]


class Given(Record):
    """A visitor that puts stored outputs in the place of what heads and MLPs compute, which they then need not."""

    def __init__(self, values: Values, *kinds: str) -> None:
        super().__init__(*kinds)
        self.given = values

    def __call__(self, site: Site, value: Tensor | None) -> Tensor | None:
        value = super().__call__(site, value)
        if site.kind == "head_output":
            return self.given.heads[site.layer]
        if site.kind == "mlp_out":
            return self.given.mlps[site.layer]
        return None if site.kind in ("attn_in", "mlp_in") else value


@torch.no_grad()
def run(
    model: LanguageModel, tokens: Int[Tensor, "row pos"], lengths: Int[Tensor, " row"]
) -> tuple[Values, Float[Tensor, "row pos d_model"]]:
    """One ordinary run: every sender's output and the last residual stream, `row pos d_model`.

    Parameters
    ----------
    tokens: `row pos`, padded on the right.
    lengths: `row`.
    """
    return run_from(model, model.embed(tokens), lengths)


@torch.no_grad()
def run_from(
    model: LanguageModel, inputs: Float[Tensor, "input row pos d_model"], lengths: Int[Tensor, " row"]
) -> tuple[Values, Float[Tensor, "row pos d_model"]]:
    """The same from what the input senders write, `input row pos d_model`."""
    record = Record("head_output", "mlp_out")
    stream = forward(model, inputs.sum(0), record, mask=model.attention_mask(lengths, inputs.shape[-2]))
    mlps = torch.stack(record["mlp_out"]) if record["mlp_out"] else stream.new_zeros((0, *stream.shape))
    return Values(inputs, torch.stack(record["head_output"]), mlps), stream


def streams(
    model: LanguageModel, values: Values
) -> tuple[
    list[Float[Tensor, "row pos d_model"]], list[Float[Tensor, "row pos d_model"]], Float[Tensor, "row pos d_model"]
]:
    """The inputs of each layer's q, k, v ports, of each MLP, and of the logits, each `row pos d_model`.

    A port's input is the sum of the outputs of all its senders and of the attention output biases before it, which are
    never ablated. Of ablated values these are the ports' ablated inputs.
    """
    given = Given(values, "attn_in", "mlp_in")
    stream = values.inputs.sum(0)
    last = forward(model, stream, given, mask=stream.new_zeros(1, 1, 1, dtype=torch.bool))
    return given["attn_in"], given["mlp_in"], last
