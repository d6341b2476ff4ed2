"""The project's errors. A message says what was given, what is allowed and what to do."""

from __future__ import annotations


class AcdcError(Exception):
    """Anything a user can cause and mend. The command line prints it as one line and exits with 2."""


class ConfigError(AcdcError):
    """A setting has a wrong name, type or value."""


class ModelError(AcdcError):
    """A model cannot be loaded, or is not taken apart correctly."""


class TaskError(AcdcError):
    """Pairs, answers or positions that cannot be used."""


class FormatError(AcdcError):
    """A file that is not what its name promises."""


class RunError(AcdcError):
    """A run folder that cannot be written or resumed, or a result that failed its own check."""


class ExtensionError(ConfigError):
    """A task, metric, ablation, method or model family of one's own that cannot be loaded or used."""
