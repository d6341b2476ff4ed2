"""The command line: Hydra composes the configuration, a job does the work. No logic but that.

A single run is composed and validated before any folder is made (plain `@hydra.main` makes it first); sweeps are
validated the same way, then handed to Hydra's launchers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from acdc.errors import AcdcError, ConfigError, RunError

CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())


def main() -> None:
    """Entry point of the `acdc` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; 0 if all went well, 2 with one line on standard error if the user can mend what did not."""
    try:
        return _run(list(arguments))
    except AcdcError as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("acdc: stopped; go on with resume=FOLDER", file=sys.stderr)
        return 130
    print(f"acdc: {message}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    flags = _parse(arguments)
    resumed = [o for o in flags.overrides if o.startswith("resume=")]
    if resumed:
        if len(flags.overrides) > 1 or flags.multirun:
            raise ConfigError("resume=FOLDER stands alone: a resumed run keeps its own configuration")
        return _resume(Path(resumed[0].removeprefix("resume=")).expanduser())
    if flags.hydra_help or flags.shell_completion or flags.info or flags.cfg or flags.help:
        return _hydra(arguments)
    if flags.multirun:
        return _sweep(flags, arguments)
    return _single(flags.overrides, flags.config_dir)


def _parse(arguments: list[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (see acdc --help)")

    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    for name in ("config_path", "config_name"):
        if getattr(flags, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is not for acdc: add files of your own with --config-dir DIR"
            )
    return flags


def _single(overrides: list[str], config_dir: str | None) -> int:
    """One run: compose, validate, load; then make the folder and work."""
    from omegaconf import OmegaConf

    config = _compose(overrides, config_dir)
    folder = Path(config.hydra.run.dir).resolve()
    own = _without_hydra(config)
    settings = _settings(own)
    if (folder / ".hydra").exists():
        raise RunError(f"{folder} already holds a run: resume it with resume={folder}, or choose another folder")
    prepared = _prepare(settings, folder)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(own), folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": config.hydra}), folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    return _work(prepared, folder)


def _resume(folder: Path) -> int:
    """Go on with a killed run, with the configuration it was started with."""
    from omegaconf import OmegaConf

    stored = folder / ".hydra" / "config.yaml"
    if not stored.is_file():
        raise RunError(f"resume={folder}: no run was started there (it has no .hydra/config.yaml)")
    from acdc.journal import RunState

    state = RunState(folder)
    if state.exists and state.load().values["finished"]:
        print(f"acdc: the run in {folder} is finished")
        return 0
    from acdc.jobs import prepare

    own = OmegaConf.to_container(OmegaConf.load(stored))
    assert isinstance(own, dict)
    return _work(prepare(_settings(own)), folder.resolve())


def _sweep(flags: argparse.Namespace, arguments: list[str]) -> int:
    """A sweep: every combination is validated, then Hydra's sweeper and launcher run them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(flags.overrides))
        for combination in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]:
            _settings(_without_hydra(_compose(list(combination), flags.config_dir)))
    except AcdcError:
        raise
    except Exception as error:
        raise ConfigError(_explain(error, list(flags.overrides), flags.config_dir)) from error
    return _hydra(arguments)


def _hydra(arguments: list[str]) -> int:
    """Hand over to Hydra itself (help, configuration dumps, sweeps)."""
    import hydra

    sys.argv = ["acdc", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job_of_sweep)()
    return 0


def _job_of_sweep(config: Any) -> None:
    """One job of a sweep; Hydra has made its folder."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    _work(_prepare(_settings(_without_hydra(config)), folder), folder)


def _prepare(settings: Any, folder: Path) -> Any:
    from acdc.jobs import prepare, require_free

    require_free(folder)
    return prepare(settings)


def _work(prepared: Any, folder: Path) -> int:
    from rich.console import Console

    from acdc import jobs

    getattr(jobs, prepared.settings.job)(prepared, folder, Console())
    return 0


def _settings(config: dict[str, Any]) -> Any:
    from acdc.jobs import RunSettings

    return RunSettings.from_config(config)


def _compose(overrides: list[str], config_dir: str | None) -> Any:
    """The configuration with its hydra part; ConfigError in one line for whatever Hydra does not accept."""
    from hydra import compose, initialize_config_dir

    extra = [f"hydra.searchpath=[{Path(config_dir).resolve()}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=[*extra, *overrides], return_hydra_config=True)
            _ = config.hydra.run.dir
            return config
    except Exception as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error


def _without_hydra(config: Any) -> dict[str, Any]:
    """The configuration as a plain mapping, resolved, less Hydra's own part."""
    from omegaconf import OmegaConf, open_dict

    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _explain(error: Exception, overrides: list[str], config_dir: str | None) -> str:
    """Hydra's message in one line, with what is allowed."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([\w./@]+)'", text):
        key = match[1]
        parent, _, name = key.rpartition(".")
        try:
            groups = [o for o in overrides if re.match(r"\+?\w+=", o) and not o.startswith(f"{key}=")]
            node = _compose(groups, config_dir)
            for part in filter(None, parent.split(".")):
                node = node[part]
            allowed = ", ".join(k for k in node if k != "hydra")
        except Exception:
            return text
        where = f"{parent} has" if parent else "there are the groups"
        return f"{key} does not exist; {where} {allowed}"
    text = re.sub(r"In 'config': ", "", text)
    text = re.sub(r"Config search path: .*", "", text)
    text = re.sub(r"Available options in '(\w+)': ", r"; choose one of: ", text)
    return re.sub(r"\s+;", ";", text).strip()


if __name__ == "__main__":
    main()
