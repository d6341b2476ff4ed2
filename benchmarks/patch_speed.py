"""How fast a patching sweep is, as a ratio to one hooked forward pass per site measured in the same run.

    python -m benchmarks.patch_speed                        # the bundled model, and GPT-2 small's shape
    python -m benchmarks.patch_speed --part gpt2 --sample 12 --output outputs/patch_speed.json

gain = sites × time of one hooked forward pass / time of the whole sweep: every head at every position, in both
directions. A hooked pass is TransformerLens' own, `run_with_hooks` on all pairs with the site's value put in, and the
metric read from its logits; it is timed on sites drawn from all layers. Both give the same values, which is checked on
those sites.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from acdc.experiment import Experiment
from acdc.files import write_json
from acdc.model.load import ModelSettings, load_model
from acdc.patching import patch
from acdc.patching.activation_result import Patched
from acdc.tasks.base import Task
from benchmarks.acdc_speed import SHAPES, checkpoint, processor, random_task


def measure(folder: Path | None, task: str | Task, sample: int) -> dict[str, Any]:
    """One sweep, and hooked passes for some of its sites."""
    name = "pocket" if folder is None else "local"
    model, bridge = load_model(ModelSettings(name=name, path=None if folder is None else str(folder)))
    options: dict[str, Any] = {"size": 64, "template": 0} if isinstance(task, str) else {}
    experiment = Experiment.build(model, task, metric="logit_diff", **options)
    start = time.perf_counter()
    patched = patch(experiment, site="head_output", by="head_position", direction="both")
    whole = time.perf_counter() - start
    hooked, difference = hooked_seconds(bridge, experiment, patched, sample)
    sites = sum(len(one.grid) for one in patched.maps)
    return {
        "layers": model.config.n_layers,
        "heads": model.config.n_heads,
        "width": model.config.d_model,
        "pairs": len(experiment.pairs),
        "positions": experiment.batch.clean.shape[1],
        "sites": sites,
        "seconds": whole,
        "milliseconds_per_site": 1000 * whole / sites,
        "hooked_milliseconds": 1000 * hooked,
        "gain": sites * hooked / whole,
        "largest_difference": difference,
    }


def hooked_seconds(bridge: Any, experiment: Experiment, patched: Patched, sample: int) -> tuple[float, float]:
    """The mean time of a hooked pass, and how far its metric is from the sweep's (relative to clean − corrupted)."""
    tokens = {"clean": experiment.batch.clean, "corrupted": experiment.batch.corrupted}
    rng, times, differences = random.Random(0), [], []
    gap = abs(patched.clean - patched.corrupted)
    with torch.inference_mode():
        names = [f"blocks.{i}.attn.hook_z" for i in range(experiment.model.config.n_layers)]
        caches = {run: bridge.run_with_cache(ids, names_filter=names)[1] for run, ids in tokens.items()}
        for one in patched.maps:
            base, source = ("clean", "corrupted") if one.direction == "noise" else ("corrupted", "clean")
            sites = list(zip(one.grid, one.values.mean(-1).flatten().tolist(), strict=True))
            for site, ours in rng.sample(sites, sample // len(patched.maps)):
                name, (position,) = f"blocks.{site.layer}.attn.hook_z", site.place.tokens[0]
                other = caches[source][name][:, position, site.head]

                def put(value: Tensor, hook: Any, at: Any = (position, site.head), other: Tensor = other) -> Tensor:
                    value = value.clone()
                    value[:, at[0], at[1]] = other
                    return value

                start = time.perf_counter()
                logits = bridge.run_with_hooks(tokens[base], fwd_hooks=[(name, put)])
                read = logits[experiment.readouts.row, experiment.readouts.position]
                value = experiment.metric.value(read[:, experiment.metric.columns])
                times.append(time.perf_counter() - start)
                differences.append(abs(float(value) - ours) / gap)
    return sum(times) / len(times), max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["pocket", "gpt2"], default=["pocket", "gpt2"])
    parser.add_argument("--sample", type=int, default=24, help="sites for which the hooked pass is timed")
    parser.add_argument("--pairs", type=int, default=10, help="of GPT-2 small's shape")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "acdc-speed")
    parser.add_argument("--output", type=Path, default=Path("outputs/patch_speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console, table = Console(), Table(title="every head × position, both directions")
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": arguments.threads},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in ("shape", "pairs", "sites", "sweep", "per site", "hooked pass", "gain", "difference"):
        table.add_column(name, justify="right")
    for part in arguments.part:
        if part == "pocket":
            r = measure(None, "ioi", arguments.sample)
        else:
            folder = checkpoint(arguments.folder / "gpt2", **SHAPES["gpt2"])
            r = measure(folder, random_task(SHAPES["gpt2"]["vocab_size"], arguments.pairs, 16), arguments.sample)
        result[part] = r
        table.add_row(
            f"{r['layers']} × {r['heads']} × {r['width']}",
            f"{r['pairs']} × {r['positions']}",
            f"{r['sites']:,}",
            f"{r['seconds']:.1f} s",
            f"{r['milliseconds_per_site']:.2f} ms",
            f"{r['hooked_milliseconds']:.0f} ms",
            f"{r['gain']:.0f}",
            f"{r['largest_difference']:.1e}",
        )
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)
    console.print(table)
    console.print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
