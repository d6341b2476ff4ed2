"""A circuit is evaluated as it was found, unless the command line says otherwise.

What a circuit was found with stands in its file's provenance, under `settings`: plain values, read as a command line's
would be. Nothing that a file names is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from acdc import tasks
from acdc.ablation import AblationSettings
from acdc.circuit import Circuit
from acdc.errors import AcdcError, ConfigError
from acdc.experiment import Experiment
from acdc.jobs.settings import MetricSettings, RunSettings
from acdc.model.load import ModelSettings
from acdc.settings import as_mapping, from_mapping

GROUPS = ("task", "model", "metric", "ablation")
_OF_A_RUN = {"task": ("check",), "model": ("device", "tf32")}  # how and where a run works, not what it measures

Found = dict[str, dict[str, Any]]


def how_found(settings: RunSettings, experiment: Experiment) -> Found:
    """What a circuit is found, or evaluated, with: by group, without what concerns the run only."""
    groups = {group: as_mapping(getattr(settings, group)) for group in GROUPS}
    groups["metric"] = {"name": experiment.metric_name}
    return {
        group: {key: value for key, value in values.items() if key not in _OF_A_RUN.get(group, ())}
        for group, values in groups.items()
    }


def recorded(circuit: Circuit) -> Found:
    """What the circuit's file says it was found with; of an older one, or one saved in Python, as far as it does."""
    about = circuit.provenance
    if isinstance(stored := about.get("settings"), Mapping):
        return {group: dict(stored[group]) for group in GROUPS if isinstance(stored.get(group), Mapping)}
    found: Found = {}
    if circuit.task:
        found["task"] = {"name": circuit.task}
        if circuit.task != "pairs":
            found["task"] |= {
                key: about[there] for key, there in (("seed", "seed"), ("size", "pairs")) if there in about
            }
    if circuit.model:
        is_folder = Path(circuit.model).is_absolute() or Path(circuit.model).is_dir()
        found["model"] = {"name": "local", "path": circuit.model} if is_folder else {"name": circuit.model}
        found["model"] |= {"dtype": about["dtype"]} if "dtype" in about else {}
    return found | {group: {"name": about[group]} for group in ("metric", "ablation") if group in about}


def as_found(settings: RunSettings, circuits: Mapping[str, Circuit]) -> RunSettings:
    """The settings with the groups and keys that were not given replaced by those of the (first) circuit.

    Raises
    ------
    ConfigError: what the file says cannot be used, alone or with what is given.
    """
    name, circuit = next(iter(circuits.items()))
    given, found = settings.given, recorded(circuit)
    if given is None or "experiment" in given:  # which pins a whole run
        return settings
    new: dict[str, Any] = {}
    for group in GROUPS:
        brings_model = group == "model" and "task" in given and hasattr(tasks.load(settings.task.name), "MODEL")
        if group in given or brings_model or group not in found:
            continue
        now = settings.config[group]
        values = {key: now[key] for key in _OF_A_RUN.get(group, ()) if key in now} | found[group]
        values |= {key: now[key] for key in now if f"{group}.{key}" in given}
        try:
            known = {"model": ModelSettings, "metric": MetricSettings, "ablation": AblationSettings}.get(group)
            new[group] = from_mapping(known or tasks.load(str(values.get("name"))).Settings, values, group)
        except AcdcError as error:
            raise ConfigError(
                f"{name} was found with {group}={values.get('name')}, which cannot be had here ({error}): give"
                f" {group}=… yourself"
            ) from error
    return replace(settings, **new)


def differences(settings: RunSettings, experiment: Experiment, circuits: Mapping[str, Circuit]) -> list[str]:
    """Notes on what circuits were found with, and are not evaluated with."""
    here = how_found(settings, experiment)
    told: dict[tuple[str, str], list[str]] = {}
    for name, circuit in circuits.items():
        for group, there in recorded(circuit).items():
            keys = [key for key, value in there.items() if value != here[group].get(key)]
            for key in ["name"] if "name" in keys and group != "model" else keys:
                what = group if key == "name" else f"{group}.{key}"
                pair = (f"{what}={_shown(there[key])}", f"{what}={_shown(here[group].get(key))}")
                told.setdefault(pair, []).append(name)
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} found with {there}, and"
        f" {'is' if len(names) == 1 else 'are'} evaluated with {now}"
        for (there, now), names in told.items()
    ]


def _shown(value: Any) -> str:
    """A value as it stands on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
