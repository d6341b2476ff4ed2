"""conf/ says what the dataclasses say, and values of the wrong type are refused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from acdc import compose, patching
from acdc.ablation import ABLATIONS
from acdc.compose import CONF
from acdc.discovery import METHODS
from acdc.errors import ConfigError
from acdc.graph import GraphSettings
from acdc.jobs import JOBS
from acdc.jobs.settings import DOORS, GROUPS, settings_of
from acdc.metrics import METRICS
from acdc.settings import Settings, as_mapping, from_mapping
from acdc.tasks import TASKS
from scripts import write_conf

MAIN = CONF / "config.yaml"
OPTIONS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")


def test_conf_is_what_the_settings_say() -> None:
    """The files are written by `python -m scripts.write_conf`: run it after an option has changed."""
    written = dict(write_conf.files())
    there = {path.relative_to(CONF).as_posix(): path.read_text(encoding="utf-8") for path in [*OPTIONS, MAIN]}
    assert there == written
    assert write_conf.REFERENCE.read_text(encoding="utf-8") == write_conf.reference()


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_file_gives_the_defaults(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("defaults", None)  # a task that brings its own model
    if values["name"] == "local":
        values["path"] = "somewhere"
    settings = settings_of(path.parent.name, values)
    if settings is not None:  # metric=default
        usual = type(settings)(**{key: values[key] for key in ("name", "path") if key in values})
        assert settings == usual


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_has_its_comment(path: Path) -> None:
    first, rest = path.read_text().split("\n", 1)
    assert re.match(r"# \S", first), "the first line says what the option is"
    for line in re.sub(r"^defaults:\n(  - .*# \S.*\n)+", "", rest).splitlines():
        assert re.match(r"(name|_target_): \S+$|\w+: \S.*# \S|# \S|$", line), line


def test_the_files_are_all_the_choices_there_are() -> None:
    chosen: dict[str, set[str | None]] = {}
    for path in OPTIONS:
        chosen.setdefault(path.parent.name, set()).add(yaml.safe_load(path.read_text())["name"])
    assert chosen["task"] == set(TASKS.built_in)
    assert chosen["metric"] == {None, *METRICS.built_in}
    assert chosen["ablation"] == set(ABLATIONS.built_in)
    assert chosen["method"] == set(METHODS.built_in)
    assert chosen["patch"] == set(patching.METHODS)
    assert chosen["job"] == set(JOBS)
    assert chosen["tracker"] == {"none", "wandb"}
    for path in OPTIONS:  # what is typed is what is meant
        if path.parent.name not in ("model", "metric"):
            assert yaml.safe_load(path.read_text())["name"] == path.stem


def test_the_main_file_names_every_group() -> None:
    composed = [key for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"] for key in entry]
    groups = set(GROUPS) - {"graph"}
    assert groups == {path.name for path in CONF.iterdir() if path.is_dir()} - {"experiment"}
    assert groups <= set(composed)


def test_the_main_file_repeats_the_defaults_of_the_graph() -> None:
    main = yaml.safe_load((CONF / "config.yaml").read_text())
    assert main["graph"] == as_mapping(GraphSettings())
    assert main["circuit"] is None


@dataclass(frozen=True)
class Sample(Settings):
    number: float = 0.5
    maybe: float | None = None
    count: int = 1
    switch: bool = False
    text: str = ""
    either: int | str = "auto"
    words: list[str] = field(default_factory=list)
    from_: str = "here"
    named: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("number", 2, 2.0),
        ("number", -0.5, -0.5),
        ("maybe", None, None),
        ("maybe", 3, 3.0),
        ("count", 7, 7),
        ("switch", True, True),
        ("text", "a", "a"),
        ("either", 3, 3),
        ("either", "auto", "auto"),
        ("words", ["a", "b"], ["a", "b"]),
        ("words", [], []),
        ("from", "there", "there"),
        ("named", {"a": {"b": 1}}, {"a": {"b": 1}}),
        ("named", None, None),
    ],
)
def test_right_values(key: str, value: Any, kept: Any) -> None:
    result = getattr(from_mapping(Sample, {key: value}, "here"), "from_" if key == "from" else key)
    assert (result, type(result)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("number", "0.5", "a finite number"),
        ("number", None, "a finite number"),
        ("number", True, "a finite number"),
        ("number", math.nan, "a finite number"),
        ("number", -math.inf, "a finite number"),
        ("number", 10**400, "a finite number"),
        ("maybe", "x", "a finite number or null"),
        ("count", 1.0, "a whole number"),
        ("count", True, "a whole number"),
        ("switch", 1, "true or false"),
        ("switch", "true", "true or false"),
        ("text", 1, "text"),
        ("either", 1.5, "a whole number or text"),
        ("words", "a", "a list"),
        ("words", [1], "text"),
        ("named", 5, "a mapping of names to values or null"),
    ],
)
def test_wrong_values(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping(Sample, {key: value}, "here")
    assert str(error.value).startswith(f"here.{key}")
    assert str(error.value).endswith(f"is not allowed: give {allowed}")


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError, match=r"^here\.nmber does not exist; here has number, maybe, count"):
        from_mapping(Sample, {"nmber": 1}, "here")
    with pytest.raises(ConfigError, match=r"^here\.from_ does not exist; here has .*, words, from, named$"):
        from_mapping(Sample, {"from_": "there"}, "here")


def test_composing_knows_where_each_door_looks() -> None:
    """It has the names of the entry points for itself, so that it need not load torch to find none."""
    assert {group: door.entry_points for group, door in DOORS.items()} == compose._ENTRY_POINTS
