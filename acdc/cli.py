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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import acdc
from acdc import compose
from acdc.doors import TARGET
from acdc.errors import AcdcError, ConfigError, RunError
from acdc.files import write_atomically

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
    flags.overrides += compose.with_options_by_key(flags.overrides, flags.config_dir)
    flags.overrides = compose.with_keys_of_classes(flags.overrides, flags.config_dir)
    if flags.multirun:
        flags.overrides = compose.with_short_ranges(flags.overrides, flags.config_dir)
    overrides = compose.combinations(flags.overrides, flags.config_dir)[0] if flags.multirun else flags.overrides
    config = compose.compose_config(overrides, flags.config_dir)
    if flags.cfg or flags.info:
        return _hydra(flags)
    if flags.help:
        from acdc.help import help_text
        from acdc.jobs.settings import CHOICES

        names = {group: compose.names(group, flags.config_dir) for group in [*CHOICES, "experiment"]}
        choices = {group: str(option) for group, option in config.hydra.runtime.choices.items()}
        titles = {group: compose.title(group, option, flags.config_dir) for group, option in choices.items()}
        print(
            help_text(
                names,
                compose.settings_of(config),
                choices,
                titles,
                compose.broken_options(flags.config_dir),
                compose.CONF,
            )
        )
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
        hydra.main(config_path=str(compose.CONF), config_name="config", version_base="1.3")(print)()
    except SystemExit as end:
        return 2 if end.code else 0
    return 0


# The three ways to run.


def _single(config: Any) -> int:
    """One run: validate and load; then make the folder and work."""
    from omegaconf import OmegaConf

    from acdc.journal import DECISIONS

    folder = compose.absolute(config.hydra.run.dir)
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
            return _resume_sweep(compose.absolute(folder))
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
    return _work(_prepare(config, base and Path(base)), compose.absolute(folder))


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

    state = sweep_state(folder, compose.combinations(sweep_overrides(folder), None))
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

    folder = compose.absolute(config.hydra.sweep.dir)
    if (folder / "multirun.yaml").exists():
        state = sweep_state(folder, compose.combinations(sweep_overrides(folder), config_dir))
        raise RunError(f"hydra.sweep.dir={folder} already holds a sweep: {state}; choose another folder for a new one")
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    combinations = compose.combinations([*params, *overrides], config_dir)
    notes = prepare_all(
        [compose.settings_of(compose.compose_config(combination, config_dir)) for combination in combinations]
    )
    _make(folder, "hydra.sweep.dir")
    for note in notes:
        print(f"note: {note}")
    with compose.hydra_with(config_dir) as (hydra, extra):
        # The folder is given as it stands now: its default holds the time.
        fixed = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={compose.quoted(folder)}"]
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
        settings = compose.settings_of(config, Path(hydra.runtime.cwd), hydra.overrides.task)
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

        return prepare(compose.settings_of(config, base))


def _work(prepared: Any, folder: Path, quiet: bool = False) -> int:
    """The job, in a folder that is this run's."""
    from rich.console import Console

    from acdc.jobs import run_job

    try:
        run_job(prepared, folder, Console(quiet=quiet))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with acdc resume={folder}") from None
    return 0


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
