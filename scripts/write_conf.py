"""Write `conf/` and docs/options.md from the settings classes: `python -m scripts.write_conf`.

With `--check` nothing is written; the exit code is 1 where a file differs from what would be. What stands in
`conf/experiment/` is made by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from acdc import patching
from acdc.doors import TARGET
from acdc.graph import GraphSettings
from acdc.jobs.settings import ABOUT_CIRCUIT, CHOICES, DOORS, JOBS
from acdc.model.load import ModelSettings
from acdc.settings import Settings, options
from acdc.tasks.base import TaskSettings
from acdc.tracking import TrackerSettings

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
REFERENCE = ROOT / "docs" / "options.md"
WIDEST = 28  # of what stands before a comment that is aligned with the others

MODELS = {  # by file: the model's name, and what it is
    "pocket": (
        "pocket",
        "The bundled model: four layers, four heads, trained by scripts.train_pocket.",
    ),
    "local": (
        "local",
        "A Hugging Face checkpoint folder of your own: model=local model.path=FOLDER",
    ),
    "gpt2": (
        "gpt2",
        "GPT-2 small (12 layers, 12 heads), from the Hugging Face hub.",
    ),
    "gpt2_medium": (
        "gpt2-medium",
        "GPT-2 medium (24 layers, 16 heads), from the Hugging Face hub.",
    ),
    "pythia_70m": (
        "EleutherAI/pythia-70m",
        "Pythia 70M (6 layers, 8 heads, attention and MLP in parallel), from the Hugging Face hub.",
    ),
    "pythia_160m": (
        "EleutherAI/pythia-160m",
        "Pythia 160M (12 layers, 12 heads, attention and MLP in parallel), from the Hugging Face hub.",
    ),
    "llama_3_2_1b": (
        "meta-llama/Llama-3.2-1B",
        "Llama 3.2 1B (16 layers, 32 heads, 8 key-value heads), from the Hugging Face hub (gated).",
    ),
    "qwen2_5_0_5b": (
        "Qwen/Qwen2.5-0.5B",
        "Qwen2.5 0.5B (24 layers, 14 heads, 2 key-value heads), from the Hugging Face hub.",
    ),
    "attn_only_2l": (
        "NeelNanda/Attn_Only_2L512W_C4_Code",
        "Neel Nanda's two-layer attention-only model (induction), from the Hugging Face hub.",
    ),
    "attn_only_4l": (
        "NeelNanda/Attn_Only_4L512W_C4_Code",
        "Neel Nanda's four-layer attention-only model (docstring), from the Hugging Face hub.",
    ),
    "tracr_reverse": (
        "tracr_reverse",
        "The tracr program reverse, compiled by scripts.compile_tracr: 4 layers of one head.",
    ),
    "tracr_proportion": (
        "tracr_proportion",
        "The tracr program frac_prevs, compiled by scripts.compile_tracr: 2 layers of one head.",
    ),
    "gate_and": (
        "gate_and",
        "An AND gate of one layer and two heads, built by scripts.gates.",
    ),
    "gate_or": (
        "gate_or",
        "An OR gate of one layer and two heads, built by scripts.gates.",
    ),
}
MAIN = """\
# The main configuration. Every line can be overridden: acdc task=greater_than method.threshold=0.02
defaults:
{defaults}
  - _self_
  - experiment: null # a file that pins a whole run
  - override hydra/job_logging: none # run.log is the job's own
  - override hydra/hydra_logging: none

circuit: null # {circuit}
graph:
{graph}

hydra:
  run:
    dir: outputs/${{now:%Y-%m-%d}}/${{now:%H-%M-%S-%f}} # where the files of a run go
  sweep:
    dir: outputs/${{now:%Y-%m-%d}}/${{now:%H-%M-%S-%f}}-sweep # where a sweep (-m) goes
    subdir: ${{hydra.job.num}} # the folder of each of its runs
"""


def files() -> Iterator[tuple[str, str]]:
    """Every file as its path inside `conf/` and its text."""
    for group, door in DOORS.items():
        for name in door.built_in:
            cls = door.load(name)
            yield f"{group}/{name}.yaml", text(cls, cls.summary(), first=_first(cls))
    yield "metric/default.yaml", "# The task's own metric.\nname: null\n"
    for file, (name, title) in MODELS.items():
        yield f"model/{file}.yaml", text(ModelSettings, title, name=name)
    for name in patching.METHODS:
        cls = patching.load(name).Settings
        yield f"patch/{name}.yaml", text(cls, cls.summary())
    for name, job in JOBS.items():
        yield f"job/{name}.yaml", text(job, job.summary())
    yield "tracker/wandb.yaml", text(TrackerSettings, TrackerSettings.summary(), name="wandb")
    yield "tracker/none.yaml", text(TrackerSettings, "No tracking: the console and the files are all.", name="none")
    groups = "\n".join(f"  - {group}: {chosen} # {about}" for group, (chosen, about) in CHOICES.items())
    graph = "\n".join(f"  {line}" for line in lines(GraphSettings))
    yield "config.yaml", MAIN.format(defaults=groups, circuit=ABOUT_CIRCUIT, graph=graph)


def reference() -> str:
    """The page that lists every option."""
    parts = [
        "# Every option",
        "Written by `python -m scripts.write_conf` from the settings classes. `acdc --help GROUP=NAME` says the same.",
    ]
    for group, classes in _classes().items():
        parts.append(f"## {group}")
        parts.append(CHOICES[group][1][0].upper() + CHOICES[group][1][1:] + "." if group in CHOICES else "")
        for title, cls in classes:
            rows = [
                f"| `{group}.{key}` | `{_yaml(known.default)}` | {known.option.about.replace('|', chr(92) + '|')} |"
                for key, known in options(cls).items()
                if key != "name" and known.option.about
            ]
            parts.append(f"### {title}\n\n{cls.summary()}")
            if rows:
                parts.append("\n".join(["| option | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _classes() -> dict[str, list[tuple[str, type[Settings]]]]:
    """The settings classes of each group, by the option that they are of."""
    found: dict[str, list[tuple[str, type[Settings]]]] = {
        "job": [(f"job={name}", job) for name, job in JOBS.items()],
        "model": [("model", ModelSettings)],
    }
    for group, door in DOORS.items():
        found[group] = [(f"{group}={name}", door.load(name)) for name in door.built_in]
    found["patch"] = [(f"patch={name}", patching.load(name).Settings) for name in patching.METHODS]
    found["tracker"] = [("tracker=wandb", TrackerSettings)]
    found["graph"] = [("graph", GraphSettings)]
    return found


def text(cls: type[Settings], title: str, name: str | None = None, first: Sequence[str] = ()) -> str:
    """A file: a title, the lines that come first, and every option with its default and its sentence."""
    return "\n".join([f"# {title}", *first, *lines(cls, name), ""])


def _first(cls: type[Settings]) -> list[str]:
    """What stands before the options of a task."""
    if not issubclass(cls, TaskSettings):
        return []
    if cls.own_model:
        chosen = f"  - override /model@_global_.model: {cls.own_model}"
        return ["defaults:", f"{chosen} # its own; model=... on the command line still wins"]
    # The pairs of a file have a name of their own, so it is not the name that leads to the class.
    return [f"{TARGET}: {cls.__module__}.{cls.__qualname__}"] if cls.from_file else []


def lines(cls: type[Settings], name: str | None = None) -> list[str]:
    """`key: default # sentence` of every option."""
    found = []
    for key, known in options(cls).items():
        default = name if key == "name" and name is not None else known.default
        about = known.option.about if key != "name" or not name else ""
        found.append((f"{key}: {_yaml(default)}", about))
    width = max((len(left) for left, about in found if about and len(left) <= WIDEST), default=0)
    return [f"{left.ljust(width)} # {about}" if about else left for left, about in found]


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("...\n").strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files differ")
    check = parser.parse_args().check
    wanted = {CONF / path: content for path, content in files()} | {REFERENCE: reference()}
    by_hand = CONF / "experiment"
    there = {path for path in CONF.rglob("*.yaml") if by_hand not in path.parents}
    wrong = sorted(
        {path for path, content in wanted.items() if not path.is_file() or path.read_text("utf-8") != content}
        | (there - set(wanted))
    )
    for path in wrong:
        print(f"{path.relative_to(ROOT)} {'differs' if check else 'is written' if path in wanted else 'goes'}")
        if not check and path in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        elif not check:
            path.unlink()
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
