"""How fast ACDC is, as a ratio to the model's own forward pass measured in the same run.

    python -m benchmarks.acdc_speed             # GPT-2 small's shape at four thresholds, and the pocket model
    python -m benchmarks.acdc_speed --part gpt2 medium scaling profile --output outputs/speed.json

gain = tested edges × time of one bare forward pass / time of the whole discovery. The bare pass is the Hugging Face
model's own, on the same pairs, without hooks, measured before and after the discovery (the faster is taken).
Random checkpoints have Hugging Face's initialisation; the thresholds were chosen once to keep from 0.5% to 3.5% of the
edges.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from acdc.discovery import discover
from acdc.experiment import Experiment
from acdc.files import write_json
from acdc.graph import Graph
from acdc.model.load import ModelSettings, load_model
from acdc.tasks.base import Pair, Task
from benchmarks.clock import Clock

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257},
    "medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "vocab_size": 50257},
}
THRESHOLDS = {"gpt2": (3.8e-5, 3e-5, 1e-5, 4e-6), "medium": (2e-5,)}


def checkpoint(folder: Path, **shape: Any) -> Path:
    """A random GPT-2 checkpoint of some shape; made once."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **shape)).save_pretrained(folder)
    return folder


def random_task(vocabulary: int, n_pairs: int, n_positions: int) -> Task:
    """Pairs of random tokens that differ in three places, in the first quarter and later."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, vocabulary, (n_pairs, n_positions), generator=generator)
    corrupted = clean.clone()
    for place in (n_positions // 8, n_positions // 4, 5 * n_positions // 8):
        corrupted[:, place] = torch.randint(0, vocabulary, (n_pairs,), generator=generator)
    pairs = [Pair(a, b, [1], [2]) for a, b in zip(clean.tolist(), corrupted.tolist(), strict=True)]
    return Task("random", pairs, "kl_div")


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(folder: Path | str, task: Task | str, threshold: float | None, **options: Any) -> dict[str, Any]:
    """One discovery and the bare forward passes around it."""
    path = None if folder == "pocket" else str(folder)
    model, bridge = load_model(ModelSettings(name="pocket" if path is None else "local", path=path))
    experiment = Experiment.build(model, task, metric="kl_div" if isinstance(task, Task) else None)
    network, tokens = bridge.original_model, experiment.batch.clean

    def bare() -> None:
        with torch.inference_mode():
            network(tokens)

    forward = seconds(bare)
    start = time.perf_counter()
    circuit = discover(experiment, threshold=threshold, **options)
    whole = time.perf_counter() - start
    forward = min(forward, seconds(bare))
    tested, total = circuit.metrics["decisions"], len(Graph(model.config))
    return {
        "pairs": len(experiment.pairs),
        "positions": tokens.shape[1],
        "layers": model.config.n_layers,
        "heads": model.config.n_heads,
        "width": model.config.d_model,
        "threshold": circuit.method["threshold"],
        "kept": len(circuit),
        "kept_share": len(circuit) / total,
        "edges": total,
        "tested": tested,
        "near_ties": circuit.metrics["near_ties"],
        "seconds": whole,
        "bare_forward_seconds": forward,
        "milliseconds_per_test": 1000 * whole / tested,
        "gain": tested * forward / whole,
    }


def scaling(folder: Path) -> list[dict[str, Any]]:
    """Pairs, length, layers and heads multiplied, one at a time; each threshold keeps about 5% of the edges."""
    base: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 8192}
    rows = []
    for name, shape, n_pairs, n_positions, threshold in (
        ("base", {}, 10, 16, 1e-4),
        ("pairs × 4", {}, 40, 16, 1e-4),
        ("length × 4", {}, 10, 64, 7e-6),
        ("heads × 2", {"n_head": 8}, 10, 16, 3e-5),
        ("layers × 2", {"n_layer": 8}, 10, 16, 1.8e-5),
        ("layers × 4", {"n_layer": 16}, 10, 16, 3e-6),
    ):
        model = checkpoint(
            folder / f"scaling-{'-'.join(f'{k}{v}' for k, v in shape.items()) or 'base'}", **{**base, **shape}
        )
        rows.append({"what": name, **measure(model, random_task(8192, n_pairs, n_positions), threshold)})
    return rows


def profile(folder: Path, threshold: float) -> list[dict[str, Any]]:
    """Where the time goes, on GPT-2 small's shape."""
    model, _ = load_model(ModelSettings(name="local", path=str(folder)))
    experiment = Experiment.build(model, random_task(50257, 10, 16), metric="kl_div")
    clock = Clock()
    with clock.running():
        discover(experiment, threshold=threshold)
    return clock.rows()


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    columns = ("shape", "pairs", "threshold", "kept", "tested", "near-ties", "bare pass", "whole", "per test", "gain")
    for name in columns:
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            r.get("what") or f"{r['layers']} × {r['heads']} × {r['width']}",
            f"{r['pairs']} × {r['positions']}",
            f"{r['threshold']:.3g}",
            f"{r['kept']} ({r['kept_share']:.2%})",
            str(r["tested"]),
            str(r["near_ties"]),
            f"{1000 * r['bare_forward_seconds']:.0f} ms",
            f"{r['seconds']:.1f} s",
            f"{r['milliseconds_per_test']:.2f} ms",
            f"{r['gain']:.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=["gpt2", "pocket"])
    parser.add_argument("--thresholds", nargs="+", type=float, help="instead of the built-in ones")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "acdc-speed")
    parser.add_argument("--output", type=Path, default=Path("outputs/acdc_speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": arguments.threads},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for part in arguments.part:
        if part == "pocket":
            result[part] = [measure("pocket", "ioi", None)]
        elif part == "scaling":
            result[part] = scaling(arguments.folder)
        elif part == "profile":
            folder = checkpoint(arguments.folder / "gpt2", **SHAPES["gpt2"])
            result[part] = profile(folder, THRESHOLDS["gpt2"][0])
            table = Table("part", "share", "seconds", "GFLOP", "of the best product", title=part)
            for r in result[part]:
                table.add_row(
                    r["part"], f"{r['share']:.1%}", f"{r['seconds']:.1f}", f"{r['gflop']:.0f}", f"{r['of_best']:.0%}"
                )
            console.print(table)
            continue
        else:
            folder = checkpoint(arguments.folder / part, **SHAPES[part])
            task = random_task(SHAPES[part]["vocab_size"], 10, 16)
            result[part] = []
            for threshold in arguments.thresholds or THRESHOLDS[part]:
                result[part].append(measure(folder, task, threshold))
                show(console, part, result[part][-1:])
                write_json(arguments.output, result)
            continue
        show(console, part, result[part])
        write_json(arguments.output, result)
    write_json(arguments.output, result)
    console.print(f"written to {arguments.output}")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
