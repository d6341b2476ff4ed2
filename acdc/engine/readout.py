"""The last stage, residual stream to loss, for many variants: nothing is computed that the metric does not read.

Logits are linear in the residual stream up to the last norm's scale: logits = s·(x U) + c, where U folds the norm's
weight and centring into the unembedding and s is the scale of this x. So a change that arrives through one head costs
d_head, not d_model, per vocabulary row. Of all metrics only the log-sum-exp (and the squares, for l2) need whole rows;
these are made tile by tile, small enough to stay in the processor's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.experiment import Experiment

_TILE_BYTES = 2**20
_TILE_COLUMNS = 4096


class Readout:
    """Losses of an experiment's metric from residual streams at its readouts.

    Rows are `readout variant`, readouts first.
    """

    def __init__(self, experiment: Experiment) -> None:
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
        readouts = self.metric.readouts
        if self.columns is not None:  # a logit difference: few columns, no log-sum-exp
            self.tiles = [U[:, self.columns].contiguous()]
            self.offsets = [None if offset is None else offset[self.columns]]
            return
        width = U.shape[1]
        cuts = [slice(a, min(a + _TILE_COLUMNS, width)) for a in range(0, width, _TILE_COLUMNS)]
        if self.model.device.type != "cpu":
            cuts = [slice(0, width)]
        self.cuts = cuts
        self.tiles = [U[:, cut].contiguous() for cut in cuts]
        self.offsets = [None if offset is None else offset[cut] for cut in cuts]
        clean = experiment.clean_logits
        self.shift = clean.max(-1).values  # keeps exponentials in range
        if self.metric.name == "kl_div":
            p = clean.double().softmax(-1)
            self.p_log_p = (p * clean.double().log_softmax(-1)).sum(-1)
            self.p_U = (p.to(U.dtype) @ U.T).double()
            self.p_offset = 0.0 if offset is None else p @ offset.double()
        elif self.metric.name == "l2":
            self.reference = [clean[:, cut] for cut in cuts]
        else:
            self.answers = torch.cat((readouts.answers, readouts.wrong_answers), -1).clamp_min(0)
            self.answer_U = U.T[self.answers]  # readout answer d_model
            self.answer_offset = None if offset is None else offset[self.answers]

    def scale(self, x: Tensor) -> Tensor:
        """The last norm's scale of each row, `... 1`."""
        if self.norm.kind == "none":
            return x.new_ones((*x.shape[:-1], 1))
        power = (
            x.var(-1, correction=0, keepdim=True) if self.norm.kind == "layer" else x.square().mean(-1, keepdim=True)
        )
        return torch.rsqrt(power + self.norm.eps)

    def base(self, x: Tensor) -> list[Tensor]:
        """x U of the streams that `losses` is later given changes to: `readout d_model` → tiles `readout column`."""
        return [x @ tile for tile in self.tiles]

    def through(self, W_O: Tensor) -> list[Tensor]:
        """Tiles of W_O U: what a head's z, `d_head`, does to the logits."""
        return [W_O @ tile for tile in self.tiles]

    def losses(
        self,
        x: Tensor,
        base: list[Tensor] | None = None,
        changes: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """The loss of each variant, in float64.

        Parameters
        ----------
        x: `readout variant d_model`. If the variants differ from one stream only through a few heads, the costly part
        goes faster with `base` (of that stream), `changes` (those heads' change of z, `readout variant rank`) and
        `maps` (tiles `rank column`).
        """
        s = self.scale(x)
        rows = (x if changes is None else changes) * s
        tiles = self.tiles if maps is None else maps
        if self.columns is not None:
            logits = self._tile(rows, tiles[0], s, None if base is None else base[0], self.offsets[0])
            values = self.metric.values(logits.transpose(0, 1))
        elif self.metric.name == "l2":
            squares = self._whole_rows(rows, tiles, s, base)
            values = (squares / sum(tile.shape[1] for tile in tiles)).transpose(0, 1)
        else:
            values = self._with_log_sum_exp(x, s, self._whole_rows(rows, tiles, s, base)).transpose(0, 1)
        return self.metric.as_loss((values.double() * self.metric.readouts.weight.double()).sum(-1))

    def _with_log_sum_exp(self, x: Tensor, s: Tensor, sums: Tensor) -> Tensor:
        """kl_div, prob_diff and nll from Σ exp(logit − shift), `readout variant`."""
        lse = sums.log() + self.shift.double()[:, None]
        if self.metric.name == "kl_div":
            mean_logit = torch.einsum("rvd,rd->rv", x.double(), self.p_U) * s[..., 0].double()
            offset = self.p_offset if isinstance(self.p_offset, float) else self.p_offset[:, None]
            return self.p_log_p[:, None] - mean_logit - offset + lse
        logits = torch.einsum("rvd,rad->rva", x, self.answer_U) * s
        if self.answer_offset is not None:
            logits = logits + self.answer_offset[:, None]
        log_p = logits.double() - lse[..., None]
        right, wrong = self.metric.readouts.answers >= 0, self.metric.readouts.wrong_answers >= 0
        n_right = right.shape[-1]
        if self.metric.name == "nll":
            return -log_p[..., :n_right].masked_fill(~right[:, None], float("-inf")).logsumexp(-1)
        p = log_p.exp()
        return (p[..., :n_right] * right[:, None]).sum(-1) - (p[..., n_right:] * wrong[:, None]).sum(-1)

    def _whole_rows(self, rows: Tensor, tiles: list[Tensor], s: Tensor, base: list[Tensor] | None) -> Tensor:
        """Σ over the vocabulary of exp(logit − shift), or of the squared difference for l2: `readout variant`."""
        n_readouts, n_variants, _ = rows.shape
        total = torch.zeros(n_readouts, n_variants, dtype=torch.float64, device=rows.device)
        step = n_variants
        if rows.device.type == "cpu":
            step = max(1, _TILE_BYTES // (n_readouts * tiles[0].shape[1] * rows.element_size()))
        for start in range(0, n_variants, step):
            some = slice(start, min(start + step, n_variants))
            for i, tile in enumerate(tiles):
                of_base = None if base is None else base[i]
                logits = self._tile(rows[:, some], tile, s[:, some], of_base, self.offsets[i])
                if self.metric.name == "l2":
                    total[:, some] += logits.sub_(self.reference[i][:, None]).square_().sum(-1)
                else:
                    total[:, some] += logits.sub_(self.shift[:, None, None]).exp_().sum(-1)
        return total

    @staticmethod
    def _tile(rows: Tensor, tile: Tensor, s: Tensor, base: Tensor | None, offset: Tensor | None) -> Tensor:
        """A tile of logits, `readout variant column`."""
        logits = rows @ tile
        if base is not None:
            logits.addcmul_(s, base[:, None])
        return logits if offset is None else logits.add_(offset)
