"""`acdc --help`: the groups, and the options of what is chosen, as their settings classes tell them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from acdc.jobs.settings import ABOUT_CIRCUIT, CHOICES, GROUPS, RunSettings
from acdc.settings import as_mapping, shown
from acdc.settings import options as known_options

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
    options: Mapping[str, Sequence[str]],
    chosen: RunSettings,
    choices: Mapping[str, str],
    titles: Mapping[str, str],
    broken: Mapping[str, str],
    folder: Path,
    width: int | None = None,
) -> str:
    """The help.

    Parameters
    ----------
    options : the names of the options of each group.
    chosen : the settings that are composed, whose options are shown.
    choices : the option chosen in each group.
    titles : what that option is, by group.
    broken : options that no run could take, such as `task=mine`, and why; they are not listed among the others.
    folder : where the project's configuration stands.
    width : of the lines; None takes the terminal's, up to 100.
    """
    width = width or min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = ["acdc: automated circuit discovery for transformer language models", ""]
    for command, meaning in EXAMPLES.items():
        lines += _row(command, meaning, 30, width)

    lines += ["", "Flags"]
    for flag, meaning in FLAGS.items():
        lines += _row(flag, meaning, 22, width)

    lines += ["", "Groups, GROUP=OPTION (* is chosen)"]
    for group, names in options.items():
        lines += _row(group, CHOICES[group][1] if group in CHOICES else "a file that pins a whole run", 14, width)
        there = [name for name in names if f"{group}={name}" not in broken]
        lines += _row("", ", ".join(f"{name}*" if name == choices.get(group) else name for name in there), 14, width)
    if broken:
        lines += ["", "Not listed, because no run can take them"]
        for option, why in broken.items():
            lines += _row(option, why, 14, width)

    lines += ["", "Options, KEY=VALUE", *_row("circuit=null", ABOUT_CIRCUIT, 34, width)]
    for group in GROUPS:
        settings = getattr(chosen, group)
        if settings is None:
            continue
        told = [(key, known.option.about) for key, known in known_options(type(settings)).items() if key != "name"]
        if not told:
            continue
        values = as_mapping(settings)
        title = f"{group}={choices[group]}: {titles[group]}" if group in choices else group
        lines += ["", *textwrap.wrap(title, width)]
        for key, about in told:
            lines += _row(f"{group}.{key}={shown(values[key])}", about, 34, width)
    return "\n".join([*lines, "", f"The files these come from: {folder}"])


def _row(left: str, right: str, column: int, width: int) -> list[str]:
    """Two columns; what is too long for the left one stands on a line of its own."""
    rest = textwrap.wrap(right, width - column) or [""]
    if len(left) + 3 > column:
        return [f"  {left}", *(" " * column + line for line in rest)]
    return [f"  {left}".ljust(column) + rest[0], *(" " * column + line for line in rest[1:])]
