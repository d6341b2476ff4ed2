"""Composing: from the words of a command line to a configuration, by Hydra, and from there to settings."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from acdc.doors import TARGET, installed
from acdc.errors import AcdcError, ConfigError, ExtensionError

CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())

_ENTRY_POINTS = {"task": "acdc.tasks", "metric": "acdc.metrics", "ablation": "acdc.ablations", "method": "acdc.methods"}
_LAUNCHERS = {"joblib": "launchers"} | dict.fromkeys(("ray", "submitit_local", "submitit_slurm"), "clusters")


@contextmanager
def hydra_with(config_dir: str | None) -> Iterator[tuple[Any, list[str]]]:
    """Hydra, reading the project's configuration by its path, and the override that adds the user's folder."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    extra = [f"hydra.searchpath=[{quoted(absolute(config_dir))}]"] if config_dir else []
    _store_installed(config_dir)
    with initialize_config_dir(str(CONF), job_name="acdc", version_base="1.3"):
        yield GlobalHydra.instance().hydra, extra


def _store_installed(config_dir: str | None) -> None:
    """Tell Hydra of what installed packages bring, as if it stood in files.

    What cannot be used is left out, and so is what a file of the user's folder replaces.
    """
    from hydra.core.config_store import ConfigStore

    for group in _ENTRY_POINTS:
        for name in set(_installed(group)) - set(_files(group, config_dir)):
            from acdc.jobs.settings import DOORS
            from acdc.settings import options

            door = DOORS[group]
            try:
                defaults = {key: known.default for key, known in options(door.load(name)).items()}
            except ExtensionError:  # it is said where it is chosen
                continue
            own = getattr(door.load(name), "own_model", None)
            first: dict[str, Any] = {"defaults": [{"override /model@_global_.model": own}]} if own else {}
            ConfigStore.instance().store(group=group, name=name, node=first | defaults | {"name": name})


def absolute(folder: Any) -> Path:
    return Path(os.path.abspath(Path(str(folder)).expanduser()))


def quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", str(path)) + "'"


def combinations(overrides: list[str], config_dir: str | None) -> list[list[str]]:
    """The overrides of every run of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        with hydra_with(config_dir) as (hydra, _):
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
            runs: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
            return runs
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error


def compose_config(overrides: list[str], config_dir: str | None) -> Any:
    """The configuration with its hydra part; ConfigError in one line for whatever Hydra does not accept."""
    import hydra

    try:
        with hydra_with(config_dir) as (_, extra):
            config = hydra.compose("config", overrides=[*extra, *overrides], return_hydra_config=True)
            _ = config.hydra.run.dir, config.hydra.sweep.dir
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error
    if unchosen := [group for group in groups() if group not in config.hydra.runtime.choices]:
        raise ConfigError(f"{unchosen[0]} needs one option, {unchosen[0]}=OPTION (see acdc --help)")
    return config


def groups() -> list[str]:
    """The groups of which a run needs one option each: all but experiment."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "experiment")


def _files(group: str, config_dir: str | None) -> dict[str, Path]:
    """The files of a group's options by name, the project's and those of the user's folder."""
    folders = [CONF / group, *([Path(config_dir) / group] if config_dir else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _installed(group: str) -> list[str]:
    """What installed packages bring to a group. Where there is nothing, no heavy module is loaded to say so."""
    if group not in _ENTRY_POINTS or not installed(_ENTRY_POINTS[group]):
        return []
    from acdc.jobs.settings import DOORS

    return [name for name in DOORS[group] if name not in DOORS[group].built_in]


def names(group: str, config_dir: str | None) -> list[str]:
    """The options of a group, in alphabetical order."""
    return sorted({*_files(group, config_dir), *_installed(group)})


def title(group: str, option: str, config_dir: str | None) -> str:
    """What an option is: the comment that its file begins with, or what its class says."""
    from acdc.jobs.settings import DOORS

    if file := _files(group, config_dir).get(option):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""
    return DOORS[group].load(option).summary() if group in DOORS and option in DOORS[group] else ""


def broken_options(config_dir: str | None) -> dict[str, str]:
    """The options of a user's folder and of installed packages that no run could take, as `task=mine`, and why."""
    from acdc.jobs.settings import DOORS

    broken = {f"{group}={name}": why for group, door in DOORS.items() for name, why in door.broken()}
    for file in sorted(Path(config_dir).glob("*/*.yaml")) if config_dir else ():
        option = f"{file.parent.name}={file.stem}"
        try:
            settings_of(compose_config([option], config_dir))
        except AcdcError as error:
            broken[option] = str(error)
    return broken


def with_short_ranges(overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides with range(0.05,0.2,0.05) as the numbers it means: Hydra's third is 0.15000000000000002."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import RangeSweep

    try:
        with hydra_with(config_dir) as (hydra, _):
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
            short = []
            for text, override in zip(overrides, parsed, strict=True):
                values = list(override.sweep_string_iterator()) if isinstance(override.value(), RangeSweep) else []
                if any("." in value for value in values):
                    numbers = ",".join(repr(float(f"{float(value):.12g}")) for value in values)
                    text = f"{text.partition('=')[0]}=choice({numbers})"
                short.append(text)
            return short
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error


def with_options_by_key(overrides: list[str], config_dir: str | None) -> list[str]:
    """`patch=path` where patch.from=logits is given, no option of patch is, and only that one has such a key."""
    added = []
    chosen = [o for o in overrides if re.match(r"\w+=", o)]
    for group in groups():
        keys = {match[1] for o in overrides if (match := re.match(rf"{group}\.(\w+)", o)) and match[1] != TARGET}
        options = {name: _keys(path) for name, path in _files(group, config_dir).items()}
        if any(o.startswith(f"{group}=") for o in chosen) or all(keys <= known for known in options.values()):
            continue
        try:
            lacking = sorted(keys - compose_config(chosen, config_dir)[group].keys())
        except ConfigError:  # said when the whole is composed
            return []
        fitting = [f"{group}={name}" for name, known in options.items() if lacking and keys <= known]
        if len(fitting) > 1:
            raise ConfigError(f"{group}.{lacking[0]} is of {', '.join(fitting)}: choose one")
        added += fitting
    return added


def with_keys_of_classes(overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides so that Hydra takes `_target_`, and every option of a class whose file leaves it out."""
    if not any(re.match(rf"({'|'.join(_ENTRY_POINTS)}|model)\.\w+=", override) for override in overrides):
        return overrides
    from acdc.jobs.settings import DOORS
    from acdc.settings import options

    targets = dict(re.findall(rf"^(\w+)\.{TARGET}=(.*)$", "\n".join(overrides), re.MULTILINE))
    try:
        config = compose_config([o for o in overrides if re.match(r"\w+=[^,]*$", o)], config_dir)
    except ConfigError:  # said when the whole is composed
        return overrides
    taken = []
    for override in overrides:
        group, _, key = override.partition("=")[0].partition(".")
        known: Collection[str] = (TARGET,)
        if group in DOORS and key != TARGET and key not in config[group]:
            path = targets.get(group, config[group].get(TARGET))
            with suppress(ConfigError):  # said when the settings are made
                known = options(DOORS[group].target(path) if path else DOORS[group].load(config[group].name))
        taken.append(f"++{override}" if group in config and key in known and key not in config[group] else override)
    return taken


def _keys(path: Path) -> set[str]:
    """The keys that a file of options has."""
    from omegaconf import OmegaConf

    try:
        return {str(key) for key in OmegaConf.load(path)}
    except Exception:  # it is said when the file is composed
        return set()


def settings_of(config: Any, base: Path | None = None, overrides: Sequence[str] | None = None) -> Any:
    """The run's settings out of a composed configuration.

    Parameters
    ----------
    base: what paths are relative to; None is where we are. overrides: what was asked for; None takes those that the
        configuration has.
    """
    from omegaconf import OmegaConf

    from acdc.jobs import RunSettings

    try:
        own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        plain: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise ConfigError(_explain(error, [], None)) from error
    overrides = config.hydra.overrides.task if overrides is None else overrides
    given = frozenset(re.match(r"[~+]*([^=@]*)", override)[1] for override in overrides)  # type: ignore[index]
    for group in plain:
        if f"{group}.{TARGET}" in given and group not in given:  # the options of what is chosen by default are not its
            plain[group] = {key: value for key, value in plain[group].items() if f"{group}.{key}" in given}
    return RunSettings.from_config(plain, base or Path.cwd(), given)


def _why_broken(group: str, option: str) -> str:
    """Why something that an installed package brings cannot be used."""
    from acdc.jobs.settings import DOORS

    return dict(DOORS[group].broken()).get(option, f"{group}={option} cannot be used")


def _explain(error: Exception, overrides: list[str], config_dir: str | None) -> str:
    """Hydra's message in one line, with what is allowed."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as KEY=VALUE: quote a value with spaces or signs, KEY='\"VALUE\"'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if option in _installed(group):
            return _why_broken(group, option)
        if group == "hydra/launcher" and (extra := _LAUNCHERS.get(option)):
            return f"{group}={option} needs what is not installed: pip install 'acdc[{extra}]'"
        choices = f"; choose one of {', '.join(error.options)}" if error.options else ""
        return f"{group}={option} does not exist{choices}"
    if match := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return f"{match[1]} has several values: add -m to run each, or write [a,b] for a list"
    if match := re.search(r"Could not override '([\w./@-]+)'", text):
        return _unknown_key(match[1], overrides, config_dir)
    if text.startswith("Config group override must be"):
        return f"each of the groups {', '.join(groups())} takes the name of an option (see acdc --help)"
    if match := re.match(r"(?:In '.*?': )?(.*?)(?: full_key: (\S+))?(?: object_type=.*)?$", text):
        return f"{match[2]}: {match[1]}" if match[2] else match[1]
    return text


def _unknown_key(key: str, overrides: list[str], config_dir: str | None) -> str:
    groups = [o for o in overrides if re.match(r"\w+=", o) and not o.startswith(f"{key}=")]
    try:
        node, known = compose_config(groups, config_dir), ""
    except ConfigError as error:  # another override is wrong too
        return str(error)
    for part in key.split(".")[:-1]:
        if part not in node or not hasattr(node[part], "keys"):
            break
        node, known = node[part], f"{known}.{part}".lstrip(".")
    allowed = ", ".join(str(name) for name in node if name != "hydra")
    return f"{key} does not exist; {f'{known} has' if known else 'there are the groups'} {allowed}"
