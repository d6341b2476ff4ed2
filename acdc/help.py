"""`acdc --help`: the groups, and the options of what is chosen with the comments of its YAML files."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

EXAMPLES = {
    "acdc": "ACDC on IOI with the bundled model",
    "acdc task=greater_than method.threshold=0.02": "another task, another threshold",
    "acdc task=pairs task.path=PAIRS.jsonl model=local model.path=FOLDER": "your own prompts and model",
    "acdc job=check task=sentiment": "look at the pairs and at what the model makes of them; find nothing",
    "acdc task=ioi task.filter=[correct,confident:0.25]": "keep the good pairs only",
    "acdc task=ioi task.partners=4": "four corrupted prompts of each clean one; metrics average over them",
    "acdc method=eap_ig method.edges=40": "a score for every edge, and the 40 best",
    "acdc -m method=eap,eap_ig,hisp method.edges=40": "a circuit by each of some methods",
    "acdc job=compare task=ioi": "every method judged in one table: sizes, KL, areas, time, memory",
    "acdc task=tracr_reverse ablation=zero": "a compiled program, whose circuit is known",
    "acdc job=evaluate circuit=OUT": "measure and grade the circuit of a run, as it was found",
    "acdc job=patch task=ioi patch.site=head_output patch.direction=denoise": "which heads bring the behaviour back",
    "acdc job=patch patch.site=[resid_pre,mlp_out] patch.positions=[S2,end]": "where, by layer and position",
    "acdc job=patch patch=tracing task=factual_recall": "noise on the subject, and which states undo it",
    "acdc job=patch patch.from=logits patch.depth=3": "who feeds the logits, who feeds those, level by level backward",
    "acdc job=patch patch=ablation task=ioi": "heads ablated alone, one after the other and in sets; what rises",
    "acdc job=patch patch=sae task=ioi": "single features of a sparse autoencoder, ranked by effect and attribution",
    "acdc -m task.corruption=abc,flipped": "how much the circuit depends on the corrupted prompts",
    "acdc model=gpt2 ablation=zero tracker=wandb": "zero ablation, tracked by Weights & Biases",
    "acdc hydra.run.dir=OUT": "the files go to OUT, not to outputs/",
    "acdc resume=OUT": "go on with a run that was stopped",
    "acdc -m method.threshold=0.003,0.01,0.03 hydra/launcher=joblib": "a sweep: every combination, in parallel",
    "acdc experiment=ioi_kl": "a file of conf/experiment that pins a whole run",
}
FLAGS = {
    "-m, --multirun": "a sweep over comma-separated values",
    "--cfg job": "show the configuration and stop",
    "--config-dir DIR": "configuration files of your own: DIR/task/mine.yaml for task=mine, and so on",
    "--help, --version": "this text (with GROUP=OPTION: for those choices), the version",
    "--hydra-help": "what else Hydra offers",
}


def help_text(
    folders: Sequence[Path],
    choices: Mapping[str, str],
    broken: Mapping[str, str] | None = None,
    width: int | None = None,
) -> str:
    """The help.

    Parameters
    ----------
    folders: where configuration is found, the first first. choices: the option chosen in each group. broken: options
        that no run could take, as `task=mine`, and why; they are not listed. width: of the lines; None takes the
        terminal's, up to 100.
    """
    broken = broken or {}
    width = width or min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = ["acdc: automated circuit discovery for transformer language models", ""]
    for command, meaning in EXAMPLES.items():
        lines += _row(command, meaning, 30, width)

    lines += ["", "Flags"]
    for flag, meaning in FLAGS.items():
        lines += _row(flag, meaning, 22, width)

    about = _options(folders[0] / "config.yaml")
    known = {path.name for path in folders[0].iterdir() if path.is_dir()}
    groups = [*(g for g in about if g in known), *sorted(known - set(about))]
    lines += ["", "Groups, GROUP=OPTION (* is chosen)"]
    for group in groups:
        found = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
        options = sorted(option for option in found if f"{group}={option}" not in broken)
        shown = ", ".join(f"{option}*" if option == choices.get(group) else option for option in options)
        lines += _row(group, about.get(group, ("", ""))[1], 14, width)
        lines += _row("", shown, 14, width)
    if broken:
        lines += ["", "Not listed, as no run can take them"]
        for option, why in broken.items():
            lines += _row(option, why, 14, width)

    lines += ["", "Options, KEY=VALUE"]
    for key, (value, meaning) in _top(folders[0] / "config.yaml").items():
        lines += _row(f"{key}={value}", meaning, 34, width)
    for group in groups:
        files = (folder / group / f"{choices.get(group)}.yaml" for folder in folders)
        path = next((file for file in files if file.is_file()), None)
        options_of_group = {} if path is None else _options(path)
        options_of_group.pop("name", None)
        if path is None or not options_of_group:
            continue
        comment = re.match(r"# (?!@)(.*)", path.read_text(encoding="utf-8"))
        title = f"{group}={choices[group]}" + (f": {comment[1]}" if comment else "")
        lines += ["", *textwrap.wrap(title, width)]
        for key, (value, meaning) in options_of_group.items():
            lines += _row(f"{group}.{key}={value}", meaning, 34, width)
    return "\n".join([*lines, "", f"The files these come from: {folders[0]}"])


def _row(left: str, right: str, column: int, width: int) -> list[str]:
    """Two columns; what is too long for the left one stands on a line of its own."""
    rest = textwrap.wrap(right, width - column) or [""]
    if len(left) + 3 > column:
        return [f"  {left}", *(" " * column + line for line in rest)]
    return [f"  {left}".ljust(column) + rest[0], *(" " * column + line for line in rest[1:])]


def _top(path: Path) -> dict[str, tuple[str, str]]:
    """The options that are in no group's file: top-level keys of the main file, and those of its sections."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    own = "\n".join(block for block in blocks if not block.startswith(("#", "hydra:")))  # neither defaults nor Hydra's
    found, section = {}, ""
    for indent, key, value, comment in re.findall(r"^( *)(\w+):(?: ([^#\n]*?))? *(?:# *(.*))?$", own, re.MULTILINE):
        section = section if indent else f"{key}."
        if value:
            found[f"{section}{key}" if indent else key] = (value, comment)
    return found


def _options(path: Path) -> dict[str, tuple[str, str]]:
    """Key → (value, comment) of every `key: value # comment` line of a YAML file."""
    lines = re.findall(r"^(?: *- )?(\w+): ([^#\n]*?) *(?:# *(.*))?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {key: (value, comment) for key, value, comment in lines}
