"""The command line: Hydra composes the configuration, a job does the work. No logic but that.

A single run is composed, validated and loaded before any folder is made (plain `@hydra.main` makes it first). So is
every combination of a sweep, before Hydra's launcher runs them.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import acdc
from acdc.doors import TARGET
from acdc.errors import AcdcError, ConfigError, ExtensionError, RunError
from acdc.files import write_atomically

CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())

_LAUNCHERS = {"joblib": "launchers"} | dict.fromkeys(("ray", "submitit_local", "submitit_slurm"), "clusters")
_PORT = re.compile(r"""(?<![\w.'"])a\d+\.h\d+<[qkv]>(?!['"])""")  # a name that Hydra reads only in quotes


def main() -> None:
    """Entry point of the `acdc` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; 0 if all went well, 2 with one line on standard error if the user can mend what did not."""
    _let_any_console_do()
    try:
        return _run(_parse(list(arguments)))
    except AcdcError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # acdc --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        return _refuse(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt as stop:
        _refuse(f"stopped; {stop}" if stop.args else "stopped before a run began")
        return 130


def _let_any_console_do() -> None:
    """What a console's encoding lacks is shown as ?, so that τ stops no run on one that speaks Latin-1 or ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _refuse(message: str) -> int:
    print(f"acdc: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2


# What is asked for.


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides; what Hydra would ignore, or refuse in many lines, is refused in one."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    next(a for a in parser._actions if "--version" in a.option_strings).version = f"acdc {acdc.__version__}"  # type: ignore[attr-defined]

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (see acdc --help)")

    parser.error = refuse  # type: ignore[method-assign]
    arguments = [_PORT.sub(r"'\g<0>'", argument) for argument in arguments]
    flags = parser.parse_intermixed_args(arguments)
    flags.arguments = arguments
    if flags.config_path or flags.config_name:
        refuse("--config-path and --config-name are not for acdc: add configuration of your own with --config-dir DIR")
    if flags.experimental_rerun:
        refuse("--experimental-rerun is not for acdc: go on with a run by resume=FOLDER")
    if (flags.resolve or flags.package) and not flags.cfg:
        refuse("--resolve and --package belong to --cfg")
    if flags.run + flags.multirun + bool(flags.cfg) + flags.shell_completion + bool(flags.info) > 1:
        refuse("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        refuse(f"--config-dir {flags.config_dir} is not a folder")
    for override in () if flags.shell_completion else flags.overrides:
        if not re.match(r"(\+\+?)?[\w/@.-]+=|~[\w/@.-]+", override):
            refuse(f"{override!r} is not KEY=VALUE")
    return flags


def _run(flags: argparse.Namespace) -> int:
    if resumed := [o.removeprefix("resume=") for o in flags.overrides if o.startswith("resume=")]:
        targets = dict(re.findall(r"^(\w+)\._target_=(.*)$", "\n".join(flags.overrides), re.MULTILINE))
        if len(flags.arguments) > 1 + len(targets) or not resumed[0]:
            raise ConfigError("resume=FOLDER stands alone: a resumed run keeps its own configuration")
        return _resume(Path(resumed[0]).expanduser(), targets)
    if flags.hydra_help or flags.shell_completion:
        return _hydra(flags)
    asked = list(flags.overrides)
    flags.overrides += _options_by_key(flags.overrides, flags.config_dir)
    flags.overrides = _with_keys_of_classes(flags.overrides, flags.config_dir)
    if flags.multirun:
        flags.overrides = _with_short_ranges(flags.overrides, flags.config_dir)
    overrides = _combinations(flags.overrides, flags.config_dir)[0] if flags.multirun else flags.overrides
    config = _compose(overrides, flags.config_dir)
    if flags.cfg or flags.info:
        return _hydra(flags)
    if flags.help:
        from acdc.help import help_text

        names = {group: _names(group, flags.config_dir) for group in [*_groups(), "experiment"]}
        choices = {group: str(option) for group, option in config.hydra.runtime.choices.items()}
        titles = {group: _title(group, option, flags.config_dir) for group, option in choices.items()}
        print(help_text(names, _settings(config), choices, titles, _broken_options(flags.config_dir), CONF))
        return 0
    if flags.multirun or (config.hydra.mode and config.hydra.mode.name == "MULTIRUN"):
        return _sweep(config, flags.overrides, flags.config_dir)
    from omegaconf import OmegaConf

    words: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # as they were typed
    config.hydra.overrides.task = [own for own in words if own in asked or own.removeprefix("++") in asked]
    return _single(config)


def _hydra(flags: argparse.Namespace) -> int:
    """Hand over to Hydra itself: its help, dumps of the configuration, shell completion."""
    import hydra

    sys.argv[1:] = [*(a for a in flags.arguments if a not in flags.overrides), *flags.overrides]
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(print)()
    except SystemExit as end:
        return 2 if end.code else 0
    return 0


# The three ways to run.


def _single(config: Any) -> int:
    """One run: validate and load; then make the folder and work."""
    from omegaconf import OmegaConf

    from acdc.journal import DECISIONS

    folder = _absolute(config.hydra.run.dir)
    _require_free(folder, ".hydra", DECISIONS)
    prepared = _prepare(config)
    _make(folder / ".hydra", "hydra.run.dir", exist_ok=False)  # whoever makes it has the folder
    config.hydra.runtime.output_dir = str(folder)
    _keep(folder, "hydra.yaml", OmegaConf.masked_copy(config, "hydra"))
    _keep(folder, "overrides.yaml", config.hydra.overrides.task)
    _keep(folder, "config.yaml", prepared.settings.config)
    return _work(prepared, folder)


def _resume(folder: Path, targets: Mapping[str, str]) -> int:
    """Go on with a killed run, with the configuration it was started with.

    Parameters
    ----------
    targets : by group, the `_target_` that this call names; what a file names alone is not imported.
    """
    from acdc.journal import DECISIONS, RESOLVED, Journal, RunState

    stored = folder / ".hydra" / "config.yaml"
    if not stored.is_file():
        if (folder / "multirun.yaml").is_file():
            return _resume_sweep(_absolute(folder))
        raise RunError(f"resume={folder}: no run was started there (it has no .hydra/config.yaml)")
    if RunState(folder).values["finished"]:
        print(f"acdc: the run in {folder} is finished")
        return 0
    from omegaconf import OmegaConf

    if (folder / DECISIONS).exists():
        Journal(folder).close()  # refused at once where another process works in the folder
    config = _stored(stored)
    from acdc.jobs.as_found import check_named  # not for a finished run, which is looked at without torch

    for group in ("task", "model", "method", "metric", "ablation"):
        check_named(group, config.get(group) or {}, {TARGET: targets.get(group)})
    asked, hydra, resolved = (
        _stored(file) if file.is_file() else {}
        for file in (stored.with_name("overrides.yaml"), stored.with_name("hydra.yaml"), folder / RESOLVED)
    )
    # What the environment said of W&B when the run began holds on; but for the mode, if it says another one now.
    for key, value in resolved.get("tracker", {}).items():
        if config.tracker.get(key) is None and not (key == "mode" and "WANDB_MODE" in os.environ):
            config.tracker[key] = value
    config.hydra = {"overrides": {"task": asked or []}}
    base = OmegaConf.select(OmegaConf.create(hydra), "hydra.runtime.cwd")
    return _work(_prepare(config, base and Path(base)), _absolute(folder))


def _stored(file: Path) -> Any:
    """A file of YAML that a run has left."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.create(file.read_text(encoding="utf-8"))
    except Exception as error:
        raise RunError(f"{file} is damaged and the run cannot be resumed: {error}") from error


def _resume_sweep(folder: Path) -> int:
    """Say how far a killed sweep is; where only its table is missing, make that."""
    from acdc.sweep import show_sweep, sweep_overrides, sweep_state

    state = sweep_state(folder, _combinations(sweep_overrides(folder), None))
    if state.go_on or state.running or state.never_started:
        raise RunError(f"resume={folder} is a sweep: {state}")
    if (folder / "sweep.csv").is_file():
        print(f"acdc: the sweep in {folder} is finished")
    else:
        show_sweep(folder)
    return 0


def _sweep(config: Any, overrides: list[str], config_dir: str | None) -> int:
    """A sweep: every combination is validated and loaded once; then Hydra's sweeper and launcher run them."""
    from acdc.jobs import prepare_all
    from acdc.sweep import show_sweep, sweep_overrides, sweep_state

    folder = _absolute(config.hydra.sweep.dir)
    if (folder / "multirun.yaml").exists():
        state = sweep_state(folder, _combinations(sweep_overrides(folder), config_dir))
        raise RunError(f"hydra.sweep.dir={folder} already holds a sweep: {state}; choose another folder for a new one")
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    combinations = _combinations([*params, *overrides], config_dir)
    notes = prepare_all([_settings(_compose(combination, config_dir)) for combination in combinations])
    _make(folder, "hydra.sweep.dir")
    for note in notes:
        print(f"note: {note}")
    with _hydra_with(config_dir) as (hydra, extra):
        # The folder is given as it stands now: its default holds the time.
        fixed = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={_quoted(folder)}"]
        if _is_joblib(config.hydra.launcher):
            fixed.append(f"hydra.launcher.n_jobs={_workers(config.hydra.launcher.n_jobs, len(combinations))}")
        try:
            hydra.multirun("config", _job_of_sweep, [*extra, *_swept_together(overrides, hydra), *fixed])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the runs are in {folder}: go on with each by acdc resume=FOLDER") from None
    finished = show_sweep(folder)
    lacking = len(combinations) - finished
    return _refuse(f"{lacking} of {len(combinations)} runs did not finish: see {folder}") if lacking else 0


def _is_joblib(launcher: Any) -> bool:
    return "joblib" in str(launcher.get("_target_"))


def _workers(n_jobs: int, n_runs: int) -> int:
    """How many processes work on a sweep: as many as asked for, but no more than there are runs, or processor cores."""
    from joblib import cpu_count, effective_n_jobs

    # Threads that wait must not hold a core that another process could use; read when a worker loads torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return int(max(1, min(effective_n_jobs(n_jobs), cpu_count(), n_runs)))


def _share_cores(n_workers: int) -> None:
    """So many threads here that those of all workers together do not outnumber the processor cores."""
    import torch
    from joblib import cpu_count  # those this process may use, by its affinity and its control group's quota

    torch.set_num_threads(max(1, min(torch.get_num_threads(), cpu_count() // n_workers)))


def _swept_together(overrides: list[str], hydra: Any) -> list[str]:
    """The overrides with a sweep over one value for every key of a group that is swept (`method=eap,hisp
    method.edges=20`): a plain one Hydra would apply to the option that is chosen without the sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
    groups = {override.key_or_group for override in parsed if override.is_sweep_override()}
    together = []
    for text, override in zip(overrides, parsed, strict=True):
        key, _, value = text.partition("=")
        plain = not override.is_sweep_override() and not override.is_delete()
        together.append(
            f"{key}=choice({value})" if plain and override.key_or_group.partition(".")[0] in groups else text
        )
    return together


def _job_of_sweep(config: Any) -> None:
    """One job of a sweep; Hydra has made its folder. If it is refused, the others still run."""
    from hydra.core.hydra_config import HydraConfig

    from acdc.jobs import prepare
    from acdc.journal import DECISIONS
    from acdc.sweep import own_overrides, show_run

    _let_any_console_do()  # it may be a process of its own
    hydra = HydraConfig.get()
    if _is_joblib(hydra.launcher):
        _share_cores(hydra.launcher.n_jobs)
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
    try:
        _require_free(folder, DECISIONS)
        settings = _settings(config, Path(hydra.runtime.cwd), hydra.overrides.task)
        prepared = prepare(settings, of_sweep=(sweep.name, own_overrides(folder, sweep)))
        _keep(folder, "config.yaml", prepared.settings.config)
        _work(prepared, folder, quiet=True)
        show_run(folder, sweep)
    except AcdcError as error:
        _refuse(f"{folder.name}: {error}")


def _prepare(config: Any, base: Path | None = None) -> Any:
    """Settings, model and pairs; a terminal is told why it waits."""
    from rich.console import Console

    with Console().status("loading the model and the pairs"):
        from acdc.jobs import prepare

        return prepare(_settings(config, base))


def _work(prepared: Any, folder: Path, quiet: bool = False) -> int:
    """The job, in a folder that is this run's."""
    from rich.console import Console

    from acdc.jobs import run_job

    try:
        run_job(prepared, folder, Console(quiet=quiet))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with acdc resume={folder}") from None
    return 0


def _absolute(folder: Any) -> Path:
    return Path(os.path.abspath(Path(str(folder)).expanduser()))


def _require_free(folder: Path, *names: str) -> None:
    if any((folder / name).exists() for name in names):
        raise RunError(f"{folder} already holds a run: go on with it by resume={folder}, or choose another folder")


def _make(folder: Path, key: str, exist_ok: bool = True) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise RunError(f"{key}: {folder} cannot be made ({error.strerror}); choose another folder") from error


def _keep(folder: Path, name: str, config: Any) -> None:
    """A file of `.hydra/`."""
    from omegaconf import OmegaConf

    write_atomically(folder / ".hydra" / name, OmegaConf.to_yaml(OmegaConf.create(config)))


# Composing.


@contextmanager
def _hydra_with(config_dir: str | None) -> Iterator[tuple[Any, list[str]]]:
    """Hydra, reading the project's configuration by its path, and the override that adds the user's folder."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    extra = [f"hydra.searchpath=[{_quoted(_absolute(config_dir))}]"] if config_dir else []
    _store_installed()
    with initialize_config_dir(str(CONF), job_name="acdc", version_base="1.3"):
        yield GlobalHydra.instance().hydra, extra


def _store_installed() -> None:
    """Tell Hydra of what installed packages bring, as if it stood in files; what cannot be used is left out."""
    from hydra.core.config_store import ConfigStore

    from acdc.jobs.settings import DOORS
    from acdc.settings import options

    for group, door in DOORS.items():
        for name in _installed(group):
            try:
                defaults = {key: known.default for key, known in options(door.load(name)).items()}
            except ExtensionError:  # it is said where it is chosen
                continue
            own = getattr(door.load(name), "own_model", None)
            first: dict[str, Any] = {"defaults": [{"override /model@_global_.model": own}]} if own else {}
            ConfigStore.instance().store(group=group, name=name, node=first | defaults | {"name": name})


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", str(path)) + "'"


def _combinations(overrides: list[str], config_dir: str | None) -> list[list[str]]:
    """The overrides of every run of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        with _hydra_with(config_dir) as (hydra, _):
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
            return BasicSweeper.split_arguments(parsed, None)[0]
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error


def _compose(overrides: list[str], config_dir: str | None) -> Any:
    """The configuration with its hydra part; ConfigError in one line for whatever Hydra does not accept."""
    from hydra import compose

    try:
        with _hydra_with(config_dir) as (_, extra):
            config = compose("config", overrides=[*extra, *overrides], return_hydra_config=True)
            _ = config.hydra.run.dir, config.hydra.sweep.dir
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error
    if unchosen := [group for group in _groups() if group not in config.hydra.runtime.choices]:
        raise ConfigError(f"{unchosen[0]} needs one option, {unchosen[0]}=OPTION (see acdc --help)")
    return config


def _groups() -> list[str]:
    """The groups of which a run needs one option each: all but experiment."""
    from acdc.jobs.settings import CHOICES

    return list(CHOICES)


def _files(group: str, config_dir: str | None) -> dict[str, Path]:
    """The files of a group's options by name, the project's and those of the user's folder."""
    folders = [CONF / group, *([Path(config_dir) / group] if config_dir else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _installed(group: str) -> list[str]:
    """What installed packages bring to a group."""
    from acdc.jobs.settings import DOORS

    return [name for name in DOORS[group] if name not in DOORS[group].built_in] if group in DOORS else []


def _names(group: str, config_dir: str | None) -> list[str]:
    """The options of a group, in alphabetical order."""
    return sorted({*_files(group, config_dir), *_installed(group)})


def _title(group: str, option: str, config_dir: str | None) -> str:
    """What an option is: the comment that its file begins with, or what its class says."""
    from acdc.jobs.settings import DOORS

    if file := _files(group, config_dir).get(option):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""
    return DOORS[group].load(option).summary() if group in DOORS and option in DOORS[group] else ""


def _broken_options(config_dir: str | None) -> dict[str, str]:
    """The options of a user's folder and of installed packages that no run could take, as `task=mine`, and why."""
    from acdc.jobs.settings import DOORS

    broken = {f"{group}={name}": why for group, door in DOORS.items() for name, why in door.broken()}
    for file in sorted(Path(config_dir).glob("*/*.yaml")) if config_dir else ():
        option = f"{file.parent.name}={file.stem}"
        try:
            _settings(_compose([option], config_dir))
        except AcdcError as error:
            broken[option] = str(error)
    return broken


def _with_short_ranges(overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides with range(0.05,0.2,0.05) as the numbers it means: Hydra's third is 0.15000000000000002."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import RangeSweep

    try:
        with _hydra_with(config_dir) as (hydra, _):
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


def _options_by_key(overrides: list[str], config_dir: str | None) -> list[str]:
    """`patch=path` where patch.from=logits is given, no option of patch is, and only that one has such a key."""
    added = []
    chosen = [o for o in overrides if re.match(r"\w+=", o)]
    for group in _groups():
        keys = {match[1] for o in overrides if (match := re.match(rf"{group}\.(\w+)", o)) and match[1] != TARGET}
        options = {name: _keys(path) for name, path in _files(group, config_dir).items()}
        if any(o.startswith(f"{group}=") for o in chosen) or all(keys <= known for known in options.values()):
            continue
        try:
            lacking = sorted(keys - _compose(chosen, config_dir)[group].keys())
        except ConfigError:  # said when the whole is composed
            return []
        fitting = [f"{group}={name}" for name, known in options.items() if lacking and keys <= known]
        if len(fitting) > 1:
            raise ConfigError(f"{group}.{lacking[0]} is of {', '.join(fitting)}: choose one")
        added += fitting
    return added


def _with_keys_of_classes(overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides so that Hydra takes `_target_`, and every option of a class whose file leaves it out."""
    from acdc.jobs.settings import DOORS
    from acdc.settings import options

    if not any(re.match(rf"({'|'.join(DOORS)}|model)\.\w+=", override) for override in overrides):
        return overrides
    targets = dict(re.findall(rf"^(\w+)\.{TARGET}=(.*)$", "\n".join(overrides), re.MULTILINE))
    try:
        config = _compose([o for o in overrides if re.match(r"\w+=[^,]*$", o)], config_dir)
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


def _settings(config: Any, base: Path | None = None, overrides: Sequence[str] | None = None) -> Any:
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
        return f"each of the groups {', '.join(_groups())} takes the name of an option (see acdc --help)"
    if match := re.match(r"(?:In '.*?': )?(.*?)(?: full_key: (\S+))?(?: object_type=.*)?$", text):
        return f"{match[2]}: {match[1]}" if match[2] else match[1]
    return text


def _unknown_key(key: str, overrides: list[str], config_dir: str | None) -> str:
    groups = [o for o in overrides if re.match(r"\w+=", o) and not o.startswith(f"{key}=")]
    try:
        node, known = _compose(groups, config_dir), ""
    except ConfigError as error:  # another override is wrong too
        return str(error)
    for part in key.split(".")[:-1]:
        if part not in node or not hasattr(node[part], "keys"):
            break
        node, known = node[part], f"{known}.{part}".lstrip(".")
    allowed = ", ".join(str(name) for name in node if name != "hydra")
    return f"{key} does not exist; {f'{known} has' if known else 'there are the groups'} {allowed}"
