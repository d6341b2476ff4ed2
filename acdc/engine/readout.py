"""The last stage, residual stream to loss, for many variants: nothing is computed that the metric does not read.

Logits are linear in the residual stream up to the last norm's scale: logits = s·(x U) + c, where U folds the norm's
weight and centring into the unembedding and s is the scale of this x. So a change that arrives through one head costs
d_head, not d_model, per vocabulary row. Of all metrics only the log-sum-exp (and the squares, for l2) need whole rows;
these are made tile by tile, small enough to stay in the processor's cache.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from acdc.experiment import Experiment
from acdc.metrics import KLDivergence, NegativeLogLikelihood, ProbDiff, SquaredDistance
from acdc.model.linear import linear

_TILE_COLUMNS = 4096
_CACHED = 2**18  # numbers of a tile that stay in cache while they are worked on
_MAX_ROWS = 1024  # of one product
_TILED = (KLDivergence, SquaredDistance, ProbDiff, NegativeLogLikelihood)  # sums over the vocabulary, made in tiles
_IN_RANGE = 60.0  # of exponents, well inside single precision's 87


class Readout:
    """Losses of an experiment's metric from residual streams at its readouts.

    Rows are `readout variant`, readouts first.

    Attributes
    ----------
    columns : the only logits that the metric reads, or None.
    tiled : whether the losses are made in tiles; a metric of one's own reads whole rows of logits.

    Parameters
    ----------
    like : a readout of the same model and metric on other pairs, whose copy of the unembedding serves here too.
    """

    def __init__(self, experiment: Experiment, like: Readout | None = None) -> None:
        self.metric = experiment.metric
        self.model = experiment.model
        norm, W_U = self.model.final_norm, self.model.W_U
        self.norm = norm
        U = W_U if norm.weight is None else norm.weight[:, None] * W_U
        if norm.kind == "layer":
            U = U - U.mean(0)
        offset = self.model.b_U
        if norm.bias is not None:
            offset = norm.bias @ W_U + (0 if offset is None else offset)
        self.columns = self.metric.columns
        self.tiled = True
        readouts = self.metric.readouts
        if self.columns is not None:  # a logit difference: few columns, no log-sum-exp
            self.tiles = [U[:, self.columns]]
            self.offset = None if offset is None else offset[self.columns]
            return
        self.tiled = isinstance(self.metric.metric, _TILED)
        if not self.tiled:
            return
        clean = experiment.clean_logits
        self.shift = clean.max(-1).values  # keeps exponentials in range
        if self.metric.name == "l2":
            self.shift = torch.zeros_like(self.shift)
        # Two rows more, so that the product itself adds the offset and subtracts the shift.
        extra = torch.stack((torch.zeros_like(U[0]) if offset is None else offset, torch.ones_like(U[0])))
        width = U.shape[1]
        columns = _TILE_COLUMNS if self.model.device.type == "cpu" else width
        cuts = [slice(start, min(start + columns, width)) for start in range(0, width, columns)]
        self.tiles = like.tiles if like else [torch.cat((U[:, cut], extra[:, cut])) for cut in cuts]
        if self.metric.name == "kl_div":
            log_p = clean.double().log_softmax(-1)
            p = log_p.exp()
            self.p_log_p = (p * log_p).sum(-1)
            self.p = [p[:, cut].to(U.dtype) for cut in cuts]
        elif self.metric.name == "l2":
            self.reference = [clean[:, cut] for cut in cuts]
        else:
            self.answers = torch.cat((readouts.answers, readouts.wrong_answers), -1).clamp_min(0)
            self.answer_U = U.T[self.answers]  # readout answer d_model
            self.answer_offset = None if offset is None else offset[self.answers]

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The last norm's scale of each row, `... 1`, in single precision at least."""
        return self.norm.scale(x)

    def base(self, x: Float[Tensor, "readout d_model"]) -> list[Float[Tensor, "readout _"]]:
        """x U of the streams that `losses` is later given changes to: `readout d_model` → tiles `readout column`."""
        return [linear(x, tile[: x.shape[-1]].T) for tile in self.tiles]

    def through(self, W_O: Float[Tensor, "rank d_model"]) -> list[Float[Tensor, "_ _"]]:
        """Tiles of W_O U: what a head's z, `d_head`, does to the logits. Several heads' go below each other."""
        width = W_O.shape[-1]
        return [torch.cat((linear(W_O, tile[:width].T), tile[width:])) for tile in self.tiles]

    def losses(
        self,
        x: Float[Tensor, "readout variant d_model"],
        base: list[Float[Tensor, "readout _"]] | None = None,
        changes: Float[Tensor, "readout variant rank"] | None = None,
        maps: list[Float[Tensor, "_ _"]] | None = None,
    ) -> Float64[Tensor, " variant"]:
        """The loss of each variant, in float64.

        Parameters
        ----------
        x: `readout variant d_model`. If the variants differ from one stream only through a few heads, the costly part
        goes faster with `base` (of that stream), `changes` (those heads' change of z, `readout variant rank`) and
        `maps` (tiles `rank column`).
        """
        s = self.scale(x)
        normed = (x * s).to(x.dtype)
        if not self.tiled:
            values = self._of_all_logits(x)
        elif self.columns is not None:
            logits = normed @ self.tiles[0]
            values = self.metric.values((logits if self.offset is None else logits + self.offset).transpose(0, 1))
        else:
            if base is None or changes is None:
                sums, means = self._whole_rows(normed, self.tiles, s, None)
            else:
                sums, means = self._whole_rows((changes * s).to(x.dtype), maps or [], s, base)
            if self.metric.name == "l2":
                values = (sums / self.model.W_U.shape[1]).transpose(0, 1)
            else:
                values = self._with_log_sum_exp(normed, sums, means).transpose(0, 1)
        return self.metric.as_loss((values.double() * self.metric.readouts.weight).sum(-1))

    def _of_all_logits(self, x: Tensor) -> Tensor:
        """The metric of streams `readout variant d_model` from whole rows of logits, `variant readout`."""
        step = max(1, _MAX_ROWS // len(x))
        some = (self.model.unembed(x[:, at : at + step]).transpose(0, 1) for at in range(0, x.shape[1], step))
        return torch.cat([self.metric.values(logits) for logits in some])

    def _with_log_sum_exp(self, normed: Tensor, sums: Tensor, means: Tensor) -> Tensor:
        """kl_div, prob_diff and nll from Σ exp(logit − shift) and Σ p·(logit − shift), `readout variant`."""
        lse, shift = sums.log(), self.shift.double()[:, None]
        if bool((far := ~(lse.abs() < _IN_RANGE)).any()):
            lse[far] = self._log_sum_exp(normed[far]) - shift.expand_as(lse)[far]
        if self.metric.name == "kl_div":
            return self.p_log_p[:, None] - means + lse
        lse = lse + shift
        logits = torch.einsum("rvd,rad->rva", normed, self.answer_U)
        if self.answer_offset is not None:
            logits = logits + self.answer_offset[:, None]
        log_p = logits.double() - lse[..., None]
        right, wrong = self.metric.readouts.answers >= 0, self.metric.readouts.wrong_answers >= 0
        n_right = right.shape[-1]
        if self.metric.name == "nll":
            return -log_p[..., :n_right].masked_fill(~right[:, None], float("-inf")).logsumexp(-1)
        p = log_p.exp()
        return (p[..., :n_right] * right[:, None]).sum(-1) - (p[..., n_right:] * wrong[:, None]).sum(-1)

    def _log_sum_exp(self, rows: Tensor) -> Tensor:
        """Of whole rows of logits, the safe way, for those too far from the clean ones for Σ exp(logit − shift)."""
        width = rows.shape[-1]
        return torch.cat([rows @ tile[:width] + tile[width] for tile in self.tiles], -1).logsumexp(-1).double()

    def _whole_rows(
        self, rows: Tensor, tiles: list[Tensor], s: Tensor, base: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Sums over the vocabulary, `readout variant`: of exp(logit − shift), or of the squared difference for l2; and
        for kl_div of the model's p·(logit − shift), from the same logits, so that their rounding cancels.
        """
        n_readouts, n_variants, _ = rows.shape
        constant = torch.stack((torch.ones_like(self.shift), -self.shift), -1)[:, None]
        rows = torch.cat((rows, constant.expand(-1, n_variants, -1)), -1)
        total = torch.zeros(n_readouts, n_variants, dtype=torch.float64, device=rows.device)
        means = torch.zeros_like(total)
        # A thin product is bound by what it writes, so that has to stay in cache; a thick one is better in one piece.
        thin = rows.shape[-1] < self.model.config.d_model and rows.device.type == "cpu"
        step = max(1, (_CACHED // tiles[0].shape[1] if thin else _MAX_ROWS) // n_readouts)
        for start in range(0, n_variants, step):
            some = rows[:, start : start + step].flatten(0, 1)
            for i, tile in enumerate(tiles):
                logits = linear(some, tile.T)
                grouped = logits.view(n_readouts, -1, tile.shape[1])
                if base is not None:
                    grouped.addcmul_(s[:, start : start + step].to(grouped.dtype), base[i][:, None])
                if self.metric.name == "kl_div":
                    means[:, start : start + step] += (grouped * self.p[i][:, None]).sum(-1)
                if self.metric.name == "l2":
                    sums = grouped.sub_(self.reference[i][:, None]).square_().sum(-1)
                elif rows.device.type == "cpu":
                    blocks = logits.split(max(1, _CACHED // tile.shape[1]))
                    sums = torch.cat([block.exp_().sum(-1) for block in blocks])
                else:
                    sums = logits.exp_().sum(-1)
                total[:, start : start + step] += sums.view(n_readouts, -1)
        return total, means
