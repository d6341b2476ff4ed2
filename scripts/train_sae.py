"""Train the bundled sparse autoencoder, on activations of the bundled model.

    python -m scripts.train_sae                                     # writes acdc/model/pocket_sae/
    python -m scripts.train_sae --output DIR --hook resid_post --layer 1 --features 512 --k 12

Its activations are those of the model's own training prompts, every token of them, with their corrupted partners. It is
a TopK autoencoder (Gao et al. 2024); features that have not been active for a while learn from what the others leave
over (their auxiliary loss). The table in the output's README.md is measured on prompts that neither model nor
autoencoder was trained on.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from acdc.files import write_atomically
from acdc.model.load import POCKET
from acdc.model.sae import BUNDLED, SparseAutoencoder, read_sae, save_sae
from acdc.tasks.base import TokenizedPair, Tokenizer
from scripts.train_pocket import RECIPES, draw_pairs, is_held_out

STEPS_A_ROUND = 100  # prompts are drawn for this many steps at once
PAIRS_A_ROUND = 250  # of each task
BATCH = 2048  # tokens a step
LEARNING_RATE = 2e-3
DEAD_AFTER = 200_000  # tokens on which a feature was never active
AUXILIARY = 1 / 32  # weight of the loss of dead features
AUXILIARY_K = 32  # dead features that learn at once
HELD_OUT_PAIRS = 300  # of each task, measured

Prompt = tuple[int, ...]
Change = Callable[[Tensor], Tensor]


class PocketSite:
    """The residual stream of the bundled model at one place: read, or replaced by what an autoencoder makes of it.

    `hook`: `resid_pre` or `resid_post`.
    """

    def __init__(self, hook: str, layer: int) -> None:
        self.model = GPT2LMHeadModel.from_pretrained(POCKET).eval()
        words = PreTrainedTokenizerFast.from_pretrained(POCKET)
        self.tokenizer = Tokenizer(words, self.model.config.vocab_size)
        readers = [*self.model.transformer.h, self.model.transformer.ln_f]
        self.reader = readers[layer + (hook == "resid_post")]

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], change: Change | None = None) -> tuple[Tensor, Tensor]:
        """Logits `prompt pos word`, and the values of every real token, `token d_model`.

        Parameters
        ----------
        change: what the values are replaced by, a function of them; None leaves them.
        """
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        real = torch.arange(longest) < torch.tensor([len(prompt) for prompt in prompts])[:, None]
        seen: list[Tensor] = []

        def on_the_way(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(inputs[0])
            return inputs if change is None else (change(inputs[0]), *inputs[1:])

        with self.reader.register_forward_pre_hook(on_the_way):
            logits = self.model(ids, use_cache=False).logits
        return logits, seen[0][real]


def draw_activations(site: PocketSite, seed: int) -> Tensor:
    """Values at every token of fresh training prompts and of their corrupted partners, shuffled, `token d_model`."""
    prompts = [
        prompt
        for name in RECIPES
        for pair in draw_pairs(name, PAIRS_A_ROUND, seed, site.tokenizer)
        if not is_held_out(name, pair)
        for prompt in (pair.clean, *pair.corrupted)
    ]
    prompts.sort(key=len)  # so that little is padded
    values = torch.cat([site.logits(prompts[i : i + 128])[1] for i in range(0, len(prompts), 128)])
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]


@dataclass(frozen=True)
class Shape:
    """What is trained: where it stands, how many features it has, how many are active at once."""

    hook: str
    layer: int
    features: int
    k: int


def train(site: PocketSite, shape: Shape, steps: int, seed: int, console: Console) -> SparseAutoencoder:
    """An autoencoder trained from scratch; its decoder's rows have length 1."""
    generator = torch.Generator().manual_seed(seed)
    values = draw_activations(site, seed)
    scale = values.shape[1] ** 0.5 / float((values - values.mean(0)).norm(dim=-1).mean())  # as if of unit variance
    W_dec = torch.randn(shape.features, values.shape[1], generator=generator)
    W_dec /= W_dec.norm(dim=-1, keepdim=True)
    weights = {
        "W_enc": W_dec.T.clone(),
        "b_enc": torch.zeros(shape.features),
        "W_dec": W_dec,
        "b_dec": scale * values.mean(0),
    }
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 5 * (1 - step / steps)))
    idle = torch.zeros(shape.features)  # tokens since a feature was active
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(steps):
            if step % STEPS_A_ROUND == 0 and step:
                values = draw_activations(site, seed * 1_000_003 + step)
            x = scale * values[torch.randint(len(values), (BATCH,), generator=generator)]
            sae = SparseAutoencoder("", "topk", shape.hook, shape.layer, **weights, k=shape.k)
            active = sae.encode(x)
            error = x - sae.decode(active)
            loss = error.square().sum(-1).mean()
            idle = torch.where(active.any(0), 0, idle + BATCH)
            if bool((dead := idle > DEAD_AFTER).any()):
                loss = loss + AUXILIARY * _left_over(sae, x, error.detach(), dead)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                weights["W_dec"] /= weights["W_dec"].norm(dim=-1, keepdim=True)
            progress.advance(bar)
            if step % STEPS_A_ROUND == STEPS_A_ROUND - 1:
                explained = 1 - float(error.detach().square().sum() / (x - x.mean(0)).square().sum())
                progress.console.print(f"step {step + 1}: explained {explained:.4f}, dead {int(dead.sum())}")
    found = {name: weight.detach() for name, weight in weights.items()}
    found |= {name: found[name] / scale for name in ("b_enc", "b_dec")}  # as it was the input that was scaled
    return SparseAutoencoder("pocket", "topk", shape.hook, shape.layer, **found, k=shape.k, model="pocket")


def _left_over(sae: SparseAutoencoder, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """The loss of dead features: the largest few of them are to give what the others left over."""
    before = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, dead]
    largest, where = before.topk(min(AUXILIARY_K, before.shape[1]))
    active = torch.zeros_like(before).scatter_(-1, where, largest.relu())
    return (error - active @ sae.W_dec[dead]).square().sum(-1).mean()


def held_out_pairs(name: str, tokenizer: Tokenizer, seed: int = 0) -> list[TokenizedPair]:
    """Pairs of a task that were never trained on, the same for the same seed."""
    drawn = draw_pairs(name, 4000, seed * 1_000_003 + 7, tokenizer)
    pairs = list({pair.clean: pair for pair in drawn if is_held_out(name, pair)}.values())
    return random.Random(seed).sample(pairs, min(HELD_OUT_PAIRS, len(pairs)))


def measure(site: PocketSite, sae: SparseAutoencoder, pairs: Sequence[TokenizedPair]) -> dict[str, float]:
    """How well activations come back on the clean prompts, and what is left of the model's answers with them.

    `explained`: share of the values' variance over all tokens. `l0`: features active at a token. `logit_diff` and
    `accuracy` (the share of positions with a positive one): of the model; with `_spliced`: of the model in which the
    reconstruction stands for the values at every token. `kl_spliced`: KL(model ‖ spliced model), in nats.
    """
    sums = dict.fromkeys(("logit_diff", "accuracy", "logit_diff_spliced", "accuracy_spliced", "kl_spliced"), 0.0)
    prompts = [pair.clean for pair in pairs]
    plain, x = site.logits(prompts)
    spliced, _ = site.logits(prompts, sae.reconstruct)
    for pair, *ends in zip(pairs, plain, spliced, strict=True):
        for at, right, wrong in zip(
            pair.positions, map(list, pair.answers), map(list, pair.wrong_answers), strict=True
        ):
            for end, logits in zip(("", "_spliced"), ends, strict=True):
                difference = float(logits[at, right].mean() - logits[at, wrong].mean())
                sums[f"logit_diff{end}"] += difference
                sums[f"accuracy{end}"] += difference > 0
            p, q = (logits[at].log_softmax(-1) for logits in ends)
            sums["kl_spliced"] += float((p.exp() * (p - q)).sum())
    reads = sum(len(pair.positions) for pair in pairs)
    return {
        "prompts": len(pairs),
        "explained": 1 - float((x - sae.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()),
        "l0": float((sae.encode(x) > 0).sum(-1).double().mean()),
    } | {key: total / reads for key, total in sums.items()}


@torch.no_grad()
def count_dead(site: PocketSite, sae: SparseAutoencoder, seed: int = 0) -> int:
    """Features that are active on no token of the held-out prompts of any task, clean or corrupted."""
    active = torch.zeros(sae.d_sae, dtype=torch.bool)
    for name in RECIPES:
        pairs = held_out_pairs(name, site.tokenizer, seed)
        prompts = [prompt for pair in pairs for prompt in (pair.clean, *pair.corrupted)]
        active |= (sae.encode(site.logits(prompts)[1]) > 0).any(0)
    return int((~active).sum())


def write_readme(folder: Path, sae: SparseAutoencoder, rows: dict[str, dict[str, float]], dead: int, made: str) -> None:
    """The output's README.md: what the autoencoder is and how well it does."""
    size = (folder / "sae.safetensors").stat().st_size / 1e6
    table = "\n".join(
        f"| {name} | {row['prompts']} | {row['explained']:.4f} | {row['l0']:.1f} | {row['logit_diff']:.2f}"
        f" | {row['logit_diff_spliced']:.2f} | {row['accuracy']:.3f} | {row['accuracy_spliced']:.3f}"
        f" | {row['kl_spliced']:.3f} |"
        for name, row in rows.items()
    )
    text = f"""# A sparse autoencoder of the pocket model

{sae.d_sae} features of the bundled model's residual stream, `{sae.hook}` of layer {sae.layer}; {size:.2f} MB.
It is TopK with k = {sae.k}: at most {sae.k} features are active at a token. Made by

    {made}

on every token of the model's training prompts and of their corrupted partners. On prompts held out from the training of
both, clean ones:

| task | prompts | variance explained | features active | logit difference | spliced | accuracy | spliced | KL |
|---|---|---|---|---|---|---|---|---|
{table}

Variance explained is over all tokens; spliced is the model in which the reconstruction stands for the activation at
every token; KL is KL(model ‖ spliced model) where the task reads, in nats. {dead} features are dead: never active
on these prompts or their corrupted partners.
"""
    write_atomically(folder / "README.md", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled sparse autoencoder.")
    parser.add_argument("--output", type=Path, default=BUNDLED["pocket"], help="folder to write")
    parser.add_argument("--hook", choices=("resid_pre", "resid_post"), default="resid_post")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--k", type=int, default=12, help="features active at once")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more help little at this size
    torch.use_deterministic_algorithms(True)
    console = Console()
    start = time.process_time()
    site = PocketSite(arguments.hook, arguments.layer)
    shape = Shape(arguments.hook, arguments.layer, arguments.features, arguments.k)
    sae = train(site, shape, arguments.steps, arguments.seed, console)
    seconds = time.process_time() - start
    save_sae(sae, arguments.output)
    sae = read_sae(arguments.output)
    rows = {name: measure(site, sae, held_out_pairs(name, site.tokenizer)) for name in RECIPES}
    for name, row in rows.items():
        console.print(name, {key: round(value, 3) for key, value in row.items()})
    command = (
        f"python -m scripts.train_sae --hook {shape.hook} --layer {shape.layer} --features {shape.features}"
        f" --k {shape.k} --steps {arguments.steps} --seed {arguments.seed}"
    )
    made = f"{command}\n\nin {seconds:.0f} seconds of processor time (1 thread, {platform.machine()},"
    made += f" torch {torch.__version__}),"
    write_readme(arguments.output, sae, rows, count_dead(site, sae), made)


if __name__ == "__main__":
    main()
