"""The self-check: the parts, run on real tokens, must compute what the model that they were read from computes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import ModelError
from acdc.model.checkpoint import SUPPORTED, quiet
from acdc.model.forward import Record, forward
from acdc.model.parts import LanguageModel, moved
from acdc.process import without_tf32

# Hugging Face's RMS norms compute in float32 whatever the model's precision.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4}
_PROMPTS, _TOKENS = 4, 2048  # of a length at once, at most: logits of all positions are held


class SelfCheck:
    """Compares parts with a model's bridge, once for each length of prompt: windows and positions depend on it.

    The bridge is not kept, for it has weights of its own. While nobody else holds it, a length that comes later loads
    it again.

    Parameters
    ----------
    load: makes the bridge again, as the first of what it returns.
    """

    def __init__(self, bridge: Any, load: Callable[[], tuple[Any, ...]]) -> None:
        self._bridge: Callable[[], Any] = weakref.ref(bridge)
        self._load = load
        self._seen: set[int] = set()

    def __call__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        """ModelError if the parts differ on prompts of a length that has not been looked at."""
        new = sorted({len(prompt) for prompt in prompts} - self._seen)
        if not new:
            return
        bridge = self._bridge()
        if bridge is None:
            bridge = self._load()[0]
        for length in new:
            some = max(1, min(_PROMPTS, _TOKENS // length))
            check_parts(model, bridge, torch.tensor([p for p in prompts if len(p) == length][:some]))
            self._seen.add(length)

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process loads the bridge anew."""
        return self.__dict__ | {"_bridge": _gone}


def _gone() -> None:
    """What a weak reference says when nothing is left."""


@torch.no_grad()
def check_parts(model: LanguageModel, bridge: Any, tokens: Tensor) -> float:
    """Compare each part, fed with the bridge's own activations, and the whole, with the bridge.

    Both compute in float32 (float64 for a model in float64), with the weights as the model has them. A model in half
    precision takes, for that while, one block's and the embeddings' weights in float32, twice.

    Parameters
    ----------
    tokens: `row pos`, without padding.

    Returns the largest difference of the logits, relative to the largest logit.

    Raises
    ------
    ModelError: names the layer and the part that differ by more than the precision explains.
    """
    try:
        with without_tf32():
            return _compare(model, bridge, tokens)
    except ModelError:
        raise
    except Exception as error:  # shapes, hooks and settings that no supported architecture has
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"{model.name}: its parts cannot be compared with the model's own ({reason}); this architecture is not"
            f" supported ({SUPPORTED})"
        ) from error


def _compare(model: LanguageModel, bridge: Any, tokens: Tensor) -> float:
    exact = torch.promote_types(model.dtype, torch.float32)
    device = next(bridge.parameters()).device
    tokens = tokens.to(device)
    layers = range(len(model.layers))
    hooks = ["unembed.hook_out"]
    for i in layers:
        hooks += [f"blocks.{i}.{hook}" for hook in ("hook_in", "hook_out", "attn.hook_out", "mlp.hook_out")]
    with quiet(), _computing_in(exact, bridge, model.dtype):
        _, cache = bridge.run_with_cache(tokens, names_filter=hooks)
    lengths = torch.full((len(tokens),), tokens.shape[1], device=device)
    mask = model.attention_mask(lengths, tokens.shape[1])
    tolerance = _TOLERANCE[exact]

    def theirs(part: str, hook: str) -> Tensor:
        if hook not in cache:
            raise ModelError(f"{model.name}: the hook {hook} never fires, so {part} cannot be checked; not supported")
        value: Tensor | tuple[Tensor, ...] = cache[hook]
        return value[0] if isinstance(value, tuple) else value

    def compare(part: str, ours: Tensor, hook: str) -> float:
        right = theirs(part, hook)
        difference = float((ours - right).abs().max() / right.abs().max().clamp_min(1.0))
        if not difference <= tolerance:
            raise ModelError(
                f"{model.name}: {part} differs from the model's own by {difference:.1e} (allowed {tolerance:.0e});"
                f" this architecture is not supported ({SUPPORTED})"
            )
        return difference

    ends = moved(replace(model, layers=()), device, exact)
    stream = ends.embed(tokens).sum(0)
    compare("the embedding", stream, "blocks.0.hook_in")
    for i in layers:
        one = replace(ends, layers=(moved(model.layers[i], device, exact),))  # one layer's weights at once
        written = Record("attn_out", "mlp_out")
        forward(one, theirs(f"layer {i}", f"blocks.{i}.hook_in"), written, mask=mask)
        attended, bias = written["attn_out"][0], one.layers[0].b_O
        compare(f"attention of layer {i}", attended if bias is None else attended + bias, f"blocks.{i}.attn.hook_out")
        if written["mlp_out"]:
            compare(f"the MLP of layer {i}", written["mlp_out"][0], f"blocks.{i}.mlp.hook_out")
        stream = forward(one, stream, Record(), mask=mask)
    last = theirs("the last layer", f"blocks.{len(layers) - 1}.hook_out")
    compare("the unembedding", ends.unembed(last), "unembed.hook_out")
    return compare("the whole model", ends.unembed(stream), "unembed.hook_out")


@contextmanager
def _computing_in(exact: torch.dtype, bridge: Any, rounded: torch.dtype) -> Iterator[None]:
    """The bridge computes in `exact` with weights of the precision `rounded`, one block at a time, the rest at once.

    Afterwards every weight is the very tensor that it was.
    """
    before: dict[Tensor, Tensor] = {}

    def promote(modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for tensor in (*module.parameters(False), *module.buffers(False), *vars(module).values()):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor not in before:
                    weight = isinstance(tensor, nn.Parameter)  # the rest may be finer than the weights: tables, say
                    if tensor.dtype != exact or (weight and rounded != exact):
                        before[tensor] = tensor.data
                        tensor.data = (tensor.data.to(rounded) if weight else tensor.data).to(exact)

    def restore(_: Any = None, *__: Any) -> None:
        for tensor in list(before):
            if tensor not in throughout:
                tensor.data = before.pop(tensor)

    throughout: set[Tensor] = set()
    inside = {module for block in bridge.blocks for module in block.modules()}
    handles = [block.register_forward_pre_hook(lambda it, _: promote(it.modules())) for block in bridge.blocks]
    handles += [block.register_forward_hook(restore) for block in bridge.blocks]
    try:
        promote(module for module in bridge.original_model.modules() if module not in inside)
        throughout = set(before)
        yield
    finally:
        for handle in handles:
            handle.remove()
        throughout = set()
        restore()
