"""How long the methods that score every edge take, and how much memory; each in a process of its own.

    python -m benchmarks.score_speed                       # the bundled model, and GPT-2 small's shape
    python -m benchmarks.score_speed --part gpt2 --threads 1

Seconds are the processor's, of all threads together, so that other work on the machine counts little. Memory is the
process's largest, less what it held with the model loaded and both runs made. Of GPT-2 small's shape, `exact` is
measured at one head's queries and the MLP of every third layer, which stand for all heads' q, k and v and for the
neighbouring layers, `eap_ig` on activations with one step instead of five, and trained masks with ten of their 500.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from acdc.discovery import discover
from acdc.discovery.exact import Effects
from acdc.experiment import Experiment
from acdc.files import write_json
from acdc.process import peak_memory
from benchmarks.acdc_speed import SHAPES, checkpoint, processor, random_task

METHODS: dict[str, dict[str, Any]] = {
    "eap": {"method": "eap"},
    "eap_ig, inputs": {"method": "eap_ig"},
    "eap_ig, activations": {"method": "eap_ig", "interpolate": "activations"},
    "clean_corrupted": {"method": "clean_corrupted"},
    "exact": {"method": "exact"},
    "hisp": {"method": "hisp"},
    "information_flow": {"method": "information_flow"},
    "subnetwork_probing": {"method": "subnetwork_probing"},
    "edge_pruning": {"method": "edge_pruning"},
    "random": {"method": "random"},
}
# Of the long ones: with how many steps they are measured on the large model, and how many times that they have.
IN_PART = {"eap_ig, activations": (1, 5), "subnetwork_probing": (10, 50), "edge_pruning": (10, 50)}


def measure(method: str, experiment: Experiment, whole: bool) -> dict[str, float]:
    """Seconds and megabytes of one method, the long ones measured in part unless `whole`."""
    _ = experiment.clean, experiment.ablated
    before, start, times = peak_memory(), time.process_time(), 1
    if method == "exact" and not whole:
        seconds = sampled_seconds(experiment)
    else:
        options = METHODS[method]
        if method in IN_PART and not whole:
            steps, times = IN_PART[method]
            options = {**options, "steps": steps}
        discover(experiment, **options)
        seconds = times * (time.process_time() - start)
    return {"seconds": seconds, "mb": (peak_memory() - before) / 2**20, "edges": len(experiment.graph)}


def sampled_seconds(experiment: Experiment) -> float:
    """What `exact` would take."""
    effects, config, total = Effects(experiment), experiment.model.config, 0.0
    for layer in range(1, config.n_layers, 3):
        for receiver, times in ((f"m{layer}", 1), (f"a{layer}.h0<q>", 3 * config.n_heads)):
            start = time.process_time()
            effects.into(receiver)
            total += 3 * times * (time.process_time() - start)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["pocket", "gpt2"], default=["pocket", "gpt2"])
    parser.add_argument("--method", choices=METHODS, help="measure this one here, and print the numbers")
    parser.add_argument("--pairs", type=int, default=10, help="of GPT-2 small's shape")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "acdc-speed")
    parser.add_argument("--output", type=Path, default=Path("outputs/score_speed.json"))
    arguments = parser.parse_args()
    if arguments.method:
        torch.set_num_threads(arguments.threads)
        if arguments.part == ["pocket"]:
            experiment = Experiment.build(task="ioi", size=64)
        else:
            folder = checkpoint(arguments.folder / "gpt2", **SHAPES["gpt2"])
            task = random_task(SHAPES["gpt2"]["vocab_size"], arguments.pairs, 16)
            experiment = Experiment.build(folder, task, metric="logit_diff")
        print(json.dumps(measure(arguments.method, experiment, whole=arguments.part == ["pocket"])))
        return
    table, result = Table(title=f"{processor()}, {arguments.threads} threads"), {}
    for name in ("model", "method", "edges", "CPU seconds", "memory"):
        table.add_column(name, justify="right")
    for part in arguments.part:
        for method in METHODS:  # each in a process of its own
            command = [sys.executable, "-m", "benchmarks.score_speed", "--part", part, "--method", method]
            command += ["--threads", str(arguments.threads), "--folder", str(arguments.folder)]
            command += ["--pairs", str(arguments.pairs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result[f"{part} {method}"] = r = json.loads(done.stdout.splitlines()[-1])
            table.add_row(part, method, f"{r['edges']:,}", f"{r['seconds']:.2f}", f"{r['mb']:.0f} MB")
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.output, result)
    Console().print(table)


if __name__ == "__main__":
    main()
