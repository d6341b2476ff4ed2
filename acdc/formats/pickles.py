"""Pickles and `.pt` files, read without running what is written in them.

A pickle is a program: it may call anything that it can name. Here it can name plain containers, tensors and a stand-in
for the original ACDC's `TorchIndex`; any other name ends the reading before anything is called.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
import warnings
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor

from acdc.errors import FormatError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
LEGACY = 0x1950A86A20F9469CFC6C  # what torch.save before 1.6 wrote first, as a pickle of its own

PLAIN = {("collections", "OrderedDict"): OrderedDict, ("collections", "defaultdict"): defaultdict} | {
    (module, kind.__name__): kind
    for module in ("builtins", "__builtin__")
    for kind in (slice, set, frozenset, dict, list, tuple, int, float, bool, complex)
}


class TorchIndex:
    """Holds what the original's `TorchIndex` held: `hashable_tuple`, (None, None, 3) for `[:, :, 3]`."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


class _Refused(pickle.UnpicklingError):
    """Carries the name that a pickle may not use."""


def is_pickle(data: bytes) -> bool:
    """Whether a file's contents are a pickle (protocol 2 or later) or what torch.save writes."""
    return data.startswith((ZIP, PICKLE))


def load(data: bytes, source: str) -> Any:
    """What a pickle or a `.pt` file holds.

    Parameters
    ----------
    source: how an error calls the file.

    Raises
    ------
    FormatError: it is damaged, or names anything but containers, numbers and tensors.
    """
    try:
        if data.startswith(ZIP):
            return _load_tensors(data)
        content = _Unpickler(io.BytesIO(data)).load()
        return _load_tensors(data) if isinstance(content, int) and content == LEGACY else content
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise FormatError(f"{source} {_reason(error)}") from error


def numbers(value: Any) -> Tensor | None:
    """A plain tensor of real numbers in float64, of the same shape; None if something is none."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        return None
    if value.is_complex() or value.is_quantized:
        return None
    stored = value.untyped_storage().nbytes() // value.element_size()
    return value.detach().double() if value.numel() <= stored else None  # a few numbers can be repeated without end


def shown(value: Any) -> str:
    """Something out of a pickle as an error shows it: short, and in one line."""
    return " ".join(_SHORT.repr(value).split())


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what is listed here. Whatever is no built-in type is made anew each time, as a pickle can set
    attributes of what it finds.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: dict[tuple[str, str], Any] = {
            **PLAIN,
            ("torch.storage", "_load_from_bytes"): lambda data: _load_tensors(data),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *state: torch._utils._rebuild_tensor_v2(*state),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        self.index = type("TorchIndex", (TorchIndex,), {})

    def find_class(self, module: str, name: str) -> Any:
        if name == "TorchIndex":  # it has lived in several modules
            return self.index
        if (module, name) not in self.found:
            raise _Refused(f"{module}.{name}")
        return self.found[module, name]


def _load_tensors(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own protocol and old formats; what it cannot read is an error
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """One line about why a pickle could not be read."""
    text = str(error)
    if isinstance(error, _Refused):
        named = " ".join(text.split())
    elif match := re.search(r"GLOBAL (\S+)", text):  # torch.load's way to say it
        named = match[1]
    else:
        match = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        line = match[1] if match else next(iter(text.splitlines()), "")
        return f"is a damaged pickle or .pt file ({type(error).__name__}: {line})"
    return f"names {named}, which no circuit needs and which could run anything: it was not read any further"
