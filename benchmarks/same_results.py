"""Show that two checkouts of this project compute the same: commands of every kind, run in both and held together.

    python -m benchmarks.same_results ../before .                      # two folders
    python -m benchmarks.same_results main . --only 'patch|check'      # a git revision and a folder; some commands
    python -m benchmarks.same_results main . --output outputs/same     # keep what both write
    python -m benchmarks.same_results outputs/same/old .               # against what was kept
    python -m benchmarks.same_results --list

A folder with a `.venv` is run in it. Any other, and a revision (unpacked into a temporary folder), borrows the packages
of the interpreter that runs this script, or of `--python-old` and `--python-new`.

Compared are exit codes, which files are written, and all that stands in decisions, circuits, metrics, tables, arrays
and graphs: numbers to 1e-6, relative or absolute, all else exactly, in order. Of pages, pictures, logs and stored
configurations only the names are. Commands run one after another, each in an empty folder, on one thread. Seconds are
the processor's, without the import of the libraries, which happens once a checkout. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

# What may differ: files that only one side writes, and keys and columns that say how, where or when.
ONLY_ONE_SIDE = ("*resolved.yaml",)
IGNORED = ("*seconds*", "*_mb", "*_mb_sd", "memory_gb", "verified", "wandb_id", "version*", "path", "folder", "date")
OF_A_CIRCUIT = ("total_edges", "edges", "on_path", "tested", "metrics")  # the rest of circuit.json is its settings
OF_A_GRAPH = ("kind", "layer", "head", "effect", "weight", "order")  # the rest of .graphml and .dot is how it is drawn
TOLERANCE = 1e-6
# What takes long to import and is no part of the project.
LIBRARIES = ("transformer_lens.model_bridge", "transformers.modeling_utils", "hydra", "matplotlib.pyplot", "pygraphviz")

SMALL = "task.size=4"
COMMANDS = {
    # ACDC: the tasks, metrics, ablations, engines and families
    "default": "",
    "tracr_reverse": "task=tracr_reverse ablation=zero",
    "tracr_proportion": "task=tracr_proportion task.size=8",
    "gate_or": "-m task=gate_or metric=logit_diff,kl_div,prob_diff,l2,nll ablation=zero,corrupted task.inputs=all"
    " method.threshold=0.1",
    "gate_and": "task=gate_and",
    "greater_than": f"task=greater_than metric=prob_diff ablation=noise method.threshold=0.0003 {SMALL}",
    "gendered_pronoun": f"task=gendered_pronoun metric=nll ablation=mean method.threshold=0.1 {SMALL}",
    "subject_verb_agreement": f"task=subject_verb_agreement metric=kl_div ablation=zero method.threshold=0.3 {SMALL}",
    "sentiment": f"task=sentiment metric=l2 ablation=zero method.threshold=0.3 {SMALL}",
    "factual_recall": f"task=factual_recall metric=kl_div method.threshold=0.1 {SMALL}",
    "induction": f"task=induction metric=logit_diff method.threshold=0.3 {SMALL}",
    "docstring": f"task=docstring metric=kl_div method.threshold=0.1 {SMALL}",
    "partners": f"task.partners=3 task.filter=[correct] method.threshold=0.2 {SMALL}",
    "full": "method.engine=full task=tracr_reverse task.size=8 ablation=zero",
    "projection_edges": "method.projection_edges=true graph.split_embedding=true method.threshold=0.3 task.size=2",
    "shortlist": f"method.shortlist=eap method.threshold=0.1 {SMALL}",
    "float64": "model.dtype=float64 method.threshold=0.3 task.size=2",
    **{
        name: f"model=local model.path=../../given/{name} task=pairs task.path=../../given/pairs.jsonl"
        " metric=logit_diff method.threshold=0.01"
        for name in ("gpt2", "llama", "gpt_neox")
    },
    # the other methods
    "acdc_scores": f"method=acdc_scores method.thresholds=[0.03,0.1,0.3] {SMALL}",
    "eap": "method=eap",
    "eap_ig": "method=eap_ig method.steps=3 method.select=greedy",
    "eap_ig_activations": f"method=eap_ig method.interpolate=activations method.steps=2 {SMALL}",
    "clean_corrupted": "method=clean_corrupted method.edges=30",
    "exact": f"method=exact method.select=threshold method.threshold=0.1 {SMALL}",
    "hisp": "method=hisp",
    "information_flow": "method=information_flow",
    "subnetwork_probing": f"method=subnetwork_probing method.steps=10 method.lr=1 {SMALL}",
    "edge_pruning": f"method=edge_pruning method.steps=10 {SMALL}",
    "attribution_to_circuit": f"method=attribution_to_circuit method.compare=false {SMALL}",
    "random": "method=random method.edges=200",
    # patching
    "activation": "job=patch patch=activation task.size=8",
    "activation_sites": f"job=patch patch.site=[resid_mid,mlp_out,k,pattern] patch.layers=[0,2] {SMALL}",
    "activation_neurons": f"job=patch patch.site=neuron patch.layers=[3] patch.shortlist=attribution {SMALL}",
    "path": "job=patch patch=path task.size=8",
    "path_back": f"job=patch patch.from=logits patch.depth=2 patch.width=2 {SMALL}",
    "path_through": f"job=patch patch=path patch.senders=heads patch.through=mlps patch.direction=denoise {SMALL}",
    "direct": "job=patch patch=direct patch.by=[layer,sublayer,head,neuron] task.size=8",
    "attribution": "job=patch patch=attribution patch.site=[q,k] patch.layers=[3] patch.qk_fix=true task.size=4",
    "attribution_grad_drop": f"job=patch patch=attribution patch.site=mlp_out patch.grad_drop=true {SMALL}",
    "tracing": f"job=patch patch=tracing task=factual_recall patch.draws=2 {SMALL}",
    "ablation": f"job=patch patch=ablation patch.orders=2 patch.points=8 {SMALL}",
    "ablation_resample": "job=patch patch=ablation patch.value=resample patch.draws=2 patch.orders=1 patch.points=4"
    " patch.site=mlp_out task.template=0 task.order=abba task.size=6",
    "sae": f"job=patch patch=sae patch.most=10 {SMALL}",
    # the other jobs
    "sweep": f"-m method=eap,hisp method.edges=20,40 {SMALL}",
    "check": "job=check",
    "check_sentiment": "job=check task=sentiment task.filter=[correct]",
    "evaluate": "job=evaluate circuit=../default/run job.random=2 job.bootstrap=50 job.scrubs=2 job.knockouts=3"
    " job.permutations=50 job.inflated=3 task.size=8",
    "evaluate_tracr": "job=evaluate circuit=../tracr_reverse/run task=tracr_reverse ablation=zero job.stability=2"
    " job.prune=true job.random=2 job.scrubs=2 job.knockouts=3 job.inflated=3",
    "evaluate_several": "job=evaluate circuit=../sweep/run task.size=4 job.random=2 job.scrubs=2",
    "compare": "job=compare job.methods=[acdc_scores,eap_ig,exact] task=gate_or task.inputs=all",
    "compare_ioi": "job=compare job.methods=[eap,information_flow] job.sizes=[10,30] job.random=1 task.size=2",
    "refused": "method.threshold=much",
}


def chosen(pattern: str) -> list[str]:
    """The commands that a pattern is found in, and those whose results they read."""
    names = {name for name, arguments in COMMANDS.items() if re.search(pattern, f"{name}: acdc {arguments}")}
    names |= {other for name in names for other in re.findall(r"circuit=\.\./(\w+)", COMMANDS[name])}
    return [name for name in COMMANDS if name in names]


# Running: this file, started again in the environment of each checkout.


def run_here(checkout: Path, folder: Path, commands: dict[str, str]) -> None:
    """Run commands in forks of this process; write how they ended."""
    for package in ("acdc", "acdc.tasks"):
        found = find_spec(package)
        if not found or not Path(str(found.origin)).resolve().is_relative_to(checkout):
            sys.exit(f"{sys.executable} finds {package} at {found and found.origin}, not in {checkout}")
    for library in LIBRARIES:
        with suppress(ImportError):
            import_module(library)
    torch.set_num_threads(1)
    ends, fork = {}, multiprocessing.get_context("fork")
    for name, arguments in commands.items():
        before = processor_time_of_children()
        process = fork.Process(target=run_command, args=(folder / name, shlex.split(arguments)))
        process.start()
        process.join()
        seconds = processor_time_of_children() - before
        ends[name] = {"arguments": arguments, "exit": process.exitcode, "seconds": seconds}
        print(f"  {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    (folder / "ends.json").write_text(json.dumps(ends))


def processor_time_of_children() -> float:
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def run_command(folder: Path, arguments: list[str]) -> None:
    """What the `acdc` command does, with its output in a file."""
    folder.mkdir()
    os.chdir(folder)
    output = os.open("output.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["acdc", *arguments, "hydra.run.dir=run", "hydra.sweep.dir=run"]
    import_module("acdc.cli").main()


def run_side(side: str, given: str, python: str | None, base: Path, names: list[str]) -> Path:
    """Run one checkout's commands; the folder of what they wrote."""
    if (Path(given) / "ends.json").exists():
        return Path(given)
    checkout, environment = Path(given).resolve(), {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    if not checkout.is_dir():
        checkout = base / f"checkout_{side}"
        archive = subprocess.run(["git", "-C", Path(__file__).parent.parent, "archive", given], capture_output=True)
        if archive.returncode:
            sys.exit(f"{given} is neither a folder nor a revision: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(checkout, filter="data")
    own = checkout / ".venv/bin/python"
    if python or not own.exists():  # the package as it is installed, with tasks and conf inside, before any other
        package = base / f"package_{side}" / "acdc"
        package.mkdir(parents=True)
        for path in (*(checkout / "acdc").iterdir(), checkout / "tasks", checkout / "conf"):
            with suppress(FileExistsError):
                (package / path.name).symlink_to(path)
        environment["PYTHONPATH"] = str(package.parent)
    running = base / "running"  # the same for both sides, and so are the paths in what they write
    running.mkdir()
    print(f"{side}: {given}", file=sys.stderr)
    command = [python or (own if own.exists() else sys.executable), "-P", Path(__file__).resolve(), "--run-here"]
    commands = json.dumps({name: COMMANDS[name] for name in names})
    if subprocess.run([*command, checkout, running], env=environment, input=commands, text=True).returncode:
        sys.exit(f"the commands of {given} could not be run")
    return running.rename(base / side)


def make_given(folder: Path) -> None:
    """A small random checkpoint of each family, and pairs of token ids for them."""
    import transformers

    special = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    configs = {
        "gpt2": transformers.GPT2Config(**special, n_embd=16, n_layer=2, n_head=4),
        "llama": transformers.LlamaConfig(**special, **shape, num_key_value_heads=2),
        "gpt_neox": transformers.GPTNeoXConfig(**special, **shape, rotary_pct=0.5),
    }
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, config in configs.items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    clean = torch.randint(3, 20, (6, 7)).tolist()
    pairs = [{"clean": c, "corrupted": [*c[:2], 1, 2, *c[4:]], "answers": [3], "wrong_answers": [4]} for c in clean]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


# Comparing.


def read(path: Path) -> Any:
    """What a file says, as far as it is compared."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        is_circuit = isinstance(value, dict) and value.get("format") == "acdc-circuit"
        return {key: value[key] for key in OF_A_CIRCUIT if key in value} if is_circuit else value
    if path.suffix == ".csv":
        with path.open(newline="") as lines:
            rows = csv.DictReader(lines)
            return {"columns": [name for name in rows.fieldnames or () if not ignored(name)], "rows": list(rows)}
    if path.suffix in (".npz", ".npy"):
        loaded = np.load(path)
        return dict(loaded) if path.suffix == ".npz" else loaded
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix in (".graphml", ".dot"):
        graph = nx.read_graphml(path) if path.suffix == ".graphml" else nx.nx_agraph.read_dot(path)
        names = [*graph.nodes(data=True)]
        names += [(f"{a}->{b} {values.get('headport', '')}".strip(), values) for a, b, values in graph.edges(data=True)]
        return {name: {key: values[key] for key in OF_A_GRAPH if key in values} for name, values in names}
    return None


def ignored(key: str) -> bool:
    return any(fnmatch(key, pattern) for pattern in IGNORED)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and array in a value, with where it stands."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            if not ignored(str(key)):
                yield from leaves(inner, f"{at}.{spelled(str(key))}".lstrip("."))
    elif isinstance(value, torch.Tensor):
        yield at, value.numpy()
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OSU"):
        yield f"{at} length".strip(), len(value)
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{at}[{i}]")
    else:
        yield at, value


def spelled(text: str) -> str:
    """Heads as a0.h3, however they are written: L0H3, 0.3, 0.h3, a0.3."""
    return re.sub(r"(?<![\w.])(?:L(\d+)H|a?(\d+)\.h?)(\d+)(?![\w.])", lambda m: f"a{m[1] or m[2]}.h{m[3]}", text)


def difference(old: Any, new: Any) -> str:
    """What is different, in short; nothing if the two are the same."""
    if not isinstance(old, np.ndarray) and type(old) is type(new) and old == new:
        return ""
    if isinstance(old, str) and isinstance(new, str):
        if spelled(old) == spelled(new):
            return ""
        with suppress(ValueError):
            old, new = float(old), float(new)
    if all(isinstance(value, int | float | np.ndarray) and not isinstance(value, bool) for value in (old, new)):
        a, b = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
        if a.shape != b.shape:
            return f"shape {a.shape} → {b.shape}"
        differ = ~np.isclose(b, a, TOLERANCE, TOLERANCE, equal_nan=True)
        if not differ.any():
            return ""
        if a.ndim:
            return f"{differ.sum()} of {a.size} values, the first {a[differ][0]} → {b[differ][0]}"
    return f"{old} → {new}"


def compare(old: Path, new: Path) -> tuple[int, list[str]]:
    """How many values two runs have in their files, and where they differ."""
    files = [{str(path.relative_to(side)): path for path in side.rglob("*") if path.is_file()} for side in (old, new)]
    count, differ = 0, []
    for name in sorted(files[0] | files[1], reverse=True):  # metrics and decisions before the pictures
        if any(name not in side for side in files):
            if not any(fnmatch(name, pattern) for pattern in ONLY_ONE_SIDE):
                differ.append(f"{name}: only {'OLD' if name in files[0] else 'NEW'} writes it")
            continue
        a, b = (dict(leaves(read(side[name]))) for side in files)
        count += sum(np.size(value) for value in a.values() if value is not None)
        for at in a | b:
            if at not in a or at not in b:
                differ.append(f"{name} {at}: only in {'OLD' if at in a else 'NEW'}")
            elif what := difference(a[at], b[at]):
                differ.append(f"{name} {at}: {what}")
    return count, differ


def report(old: Path, new: Path, names: list[str]) -> int:
    """Print a row a command, and the first differences; 1 if there are any."""
    ends = [json.loads((side / "ends.json").read_text()) for side in (old, new)]
    console, table, found = Console(), Table(), {}
    for title in ("acdc …", "result", "values", "seconds OLD", "seconds NEW"):
        table.add_column(title, justify="left" if title == "acdc …" else "right")
    for name in names:
        if any(side.get(name, {}).get("arguments") != COMMANDS[name] for side in ends):
            sys.exit(f"{name}: what was kept is of another list of commands: run both sides again, or choose by --only")
        count, differ = compare(old / name, new / name)
        codes = [side[name]["exit"] for side in ends]
        if codes[0] != codes[1]:
            differ.insert(0, f"exit code: {codes[0]} → {codes[1]}")
        found[name] = differ
        result = f"{len(differ)} differ" if differ else f"same, exit {codes[0]}" if codes[0] else "same"
        table.add_row(name, result, f"{count:,}", *(f"{side[name]['seconds']:.1f}" for side in ends))
    table.add_section()
    totals = [f"{sum(side[name]['seconds'] for name in names):.0f}" for side in ends]
    table.add_row(f"{len(names)} commands", f"{sum(map(bool, found.values()))} differ", "", *totals)
    console.print(table)
    for name in (name for name in names if found[name]):
        more = [f"  and {len(found[name]) - 5} more"] if len(found[name]) > 5 else []
        lines = [f"\n{name}: acdc {COMMANDS[name]}", *(f"  {line}" for line in found[name][:5]), *more]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return int(any(found.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", help="a folder, a git revision, or a side's folder of an earlier --output")
    parser.add_argument("new", nargs="?", help="the same, to be held against it")
    parser.add_argument("--python-old", help="interpreter with the packages that OLD needs")
    parser.add_argument("--python-new", help="the same for NEW")
    parser.add_argument("--only", default="", metavar="PATTERN", help="commands that have this regular expression")
    parser.add_argument("--list", action="store_true", help="list the commands")
    parser.add_argument("--output", type=Path, help="a new folder to keep what both sides write")
    parser.add_argument("--run-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = chosen(arguments.only)
    if not names:
        parser.error(f"--only {arguments.only}: no command has that (see --list)")
    if arguments.list:
        print("\n".join(f"{name}: acdc {COMMANDS[name]}" for name in names))
    elif not arguments.new:
        parser.error("give OLD and NEW")
    elif arguments.run_here:
        run_here(Path(arguments.old), Path(arguments.new), json.load(sys.stdin))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            base = (arguments.output or Path(temporary)).resolve()
            make_given(base / "given")
            old = run_side("old", arguments.old, arguments.python_old, base, names)
            new = run_side("new", arguments.new, arguments.python_new, base, names)
            return report(old, new, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
