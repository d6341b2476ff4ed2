"""A circuit is evaluated as it was found, unless the command line says otherwise.

What a circuit was found with stands in its file's provenance, under `settings`: plain values, read as a command line's
would be. What a file names as `_target_` is imported only where the call names it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.doors import TARGET
from acdc.errors import AcdcError, ConfigError
from acdc.experiment import Experiment
from acdc.jobs.settings import DOORS, RunSettings, as_group, settings_of
from acdc.settings import shown

GROUPS = ("task", "model", "metric", "ablation")
_OF_A_RUN = {"task": ("check",), "model": ("device", "tf32")}  # how and where a run works, not what it measures

Found = dict[str, dict[str, Any]]


def how_found(settings: RunSettings, experiment: Experiment) -> Found:
    """What a circuit is found, or evaluated, with: by group, without what concerns the run only."""
    used = {group: getattr(settings, group) for group in GROUPS} | {"metric": experiment.measured}
    groups = {group: as_group(group, value) for group, value in used.items()}
    return {
        group: {key: value for key, value in values.items() if key not in _OF_A_RUN.get(group, ())}
        for group, values in groups.items()
    }


def recorded(circuit: Circuit) -> Found:
    """What the circuit's file says it was found with; of an older one, or one saved in Python, as far as it does."""
    about = circuit.provenance
    if isinstance(stored := about.get("settings"), Mapping):
        found = {group: dict(stored[group]) for group in GROUPS if isinstance(stored.get(group), Mapping)}
        if found.get("ablation", {}).get("name") in ("corrupted", "zero", "mean"):
            for key in ("scale", "draws", "seed"):  # older files have the options of noise too
                found["ablation"].pop(key, None)
        return found
    found = {}
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
        brings_model = group == "model" and "task" in given and settings.task.own_model is not None
        if group in given or brings_model or group not in found:
            continue
        now = settings.config[group]
        values = {key: now[key] for key in _OF_A_RUN.get(group, ()) if key in now} | found[group]
        values |= {key: now[key] for key in now if f"{group}.{key}" in given}
        check_named(group, found[group], now)
        try:
            new[group] = settings_of(group, values)
        except AcdcError as error:
            raise ConfigError(
                f"{name} was found with {group}={values.get('name')}, which cannot be had here ({error}): give"
                f" {group}=… yourself"
            ) from error
    return replace(settings, **new)


def check_named(group: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to import what only a file names.

    Parameters
    ----------
    stored : the group as a file has it.
    given : the group as this call has it.

    Raises
    ------
    ConfigError
        The file has a `_target_`, or a model family as `module.Class`, that is not built in, and this call does not
        name it.
    """
    paths = [stored.get(TARGET), stored.get("family") if group == "model" else None]
    named = (given.get(TARGET), given.get("family"))
    for path in paths:
        if path is None or "." not in str(path) or path in named:
            continue
        if not (group in DOORS and DOORS[group].is_built_in(str(path))):
            raise ConfigError(
                f"{group}.{TARGET}={path} stands in a file and is not imported from there: name it in this call too,"
                f" as {group}.{TARGET}={path}"
            )


def differences(settings: RunSettings, experiment: Experiment, circuits: Mapping[str, Circuit]) -> list[str]:
    """Notes on what circuits were found with, and are not evaluated with."""
    here = how_found(settings, experiment)
    told: dict[tuple[str, str], list[str]] = {}
    for name, circuit in circuits.items():
        for group, there in recorded(circuit).items():
            keys = [key for key, value in there.items() if value != here[group].get(key)]
            for key in ["name"] if "name" in keys and group != "model" else keys:
                what = group if key == "name" else f"{group}.{key}"
                pair = (f"{what}={shown(there[key])}", f"{what}={shown(here[group].get(key))}")
                told.setdefault(pair, []).append(name)
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} found with {there}, and"
        f" {'is' if len(names) == 1 else 'are'} evaluated with {now}"
        for (there, now), names in told.items()
    ]
