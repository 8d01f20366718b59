"""The official projects' pickled samples, read without ever running code from the file.

One file holds one sample: a dict with the EEG `X` (C, T) in uV, its channel names `ch_names` and its label `y`; TUEV
calls them `signal` and `label` and counts labels from 1. Only dicts, lists, tuples, strings, numbers and numpy's
arrays, scalars and dtypes are understood, and numpy never gets a state from the file: stand-ins check it first.
"""

import io
import pickle
import re
from pathlib import Path

import numpy as np

from dataset.channels import TUH_CHANNELS
from errors import UserError, check_file


class _NotPlain(Exception):
    """The file holds more than plain data; the message says what."""


class _Dtype:
    """Stand-in for numpy.dtype: a plain number or string type and its byte order."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biufSU]\d{1,6}", code):
            raise _NotPlain(f"arrays of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in "<>" else "<"

    def array(self, raw, shape, order) -> np.ndarray:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as str
        array = np.frombuffer(raw, np.dtype(self.order + self.code)).reshape(shape, order=order)
        if self.code[0] in "US":
            array.tolist()  # fails here and not at its first use when the bytes are no text
        return array


class _Array:
    """Stand-in for an array under construction; its state arrives after it was made."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.value = dtype.array(raw, shape, "F" if fortran else "C")


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, _="latin1": text.encode("latin1"),
    ("builtins", "bytes"): lambda: b"",
    ("__builtin__", "bytes"): lambda: b"",
}
for _core in ("numpy.core.", "numpy._core."):
    _ALLOWED |= {
        (_core + "multiarray", "_reconstruct"): lambda *_: _Array(),
        (_core + "multiarray", "scalar"): lambda dtype, raw: dtype.array(raw, (), "C").item(),
        (_core + "numeric", "_frombuffer"): lambda raw, dtype, shape, order: dtype.array(raw, shape, order),
    }


class _Dict(dict):
    def __setitem__(self, key, value):
        if not isinstance(key, str | int):  # hashing nested tuples can take for ever
            raise _NotPlain(f"a dict key of type {type(key).__name__}")
        super().__setitem__(key, value)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler (the C one can be made to allocate 64 GB), without the opcodes that make objects."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_refused(self):
        raise _NotPlain("more than plain data")

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise _NotPlain(f"an object of {ascii(f'{module}.{name}')[:80]}")
        return _ALLOWED[module, name]

    def load_build(self):
        if not isinstance(self.stack[-2], _Array | _Dtype):
            raise _NotPlain(f"state for a {type(self.stack[-2]).__name__}")
        super().load_build()

    def load_empty_dictionary(self):
        self.append(_Dict())

    def load_dict(self):
        items = self.pop_mark()
        self.append(_Dict())
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary
    dispatch[pickle.DICT[0]] = load_dict
    for opcode in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[opcode[0]] = load_refused


def load_pickle(path) -> dict:
    """Read one pickled dict of plain values and numpy arrays. Raises UserError naming the file and what it holds."""
    check_file(path)
    try:
        content = _Unpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except _NotPlain as error:
        raise UserError(f"{path} is not a plain sample, refused: it holds {error}") from None
    except Exception as error:  # a damaged file fails in any way that its bytes can spell
        raise UserError(f"{path} is a damaged pickle ({type(error).__name__}: {ascii(str(error))[:80]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict with X, ch_names and y, found a {type(content).__name__}")
    return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}


def load_sample(path) -> tuple[np.ndarray, tuple[str, ...], int | None]:
    """Read one official sample -> EEG (C, T) float32 uV, channel names as written, label from 0 or None.

    Raises UserError when the file holds anything else.
    """
    content = load_pickle(path)
    key = "X" if "X" in content else "signal"
    eeg = content.get(key)
    if not isinstance(eeg, np.ndarray) or eeg.ndim != 2 or eeg.dtype.kind not in "fi" or not eeg.size:
        raise UserError(f"{path}: expected 'X' or 'signal' to be an array (channels, samples) of numbers")
    names = content.get("ch_names", TUH_CHANNELS)  # official: TUH's samples may come without names
    names = names.ravel().tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected 'ch_names' to be a list of names")
    if len(names) != len(eeg):
        raise UserError(f"{path}: {len(eeg)} channels of EEG but {len(names)} channel names")
    label = content.get("y", content.get("label"))
    if label is not None:
        label = _whole_number(path, label) - (key == "signal")  # official: TUEV counts from 1
    with np.errstate(over="ignore", invalid="ignore"):
        eeg = eeg.astype(np.float32)
    if not np.isfinite(eeg).all():
        raise UserError(f"{path}: its EEG holds NaN or infinite values")
    return eeg, tuple(names), label


def _whole_number(path, value) -> int:
    values = np.ravel(value) if isinstance(value, int | float | np.ndarray) else np.empty(0)
    if values.size != 1 or values.dtype.kind not in "biuf" or not abs(float(values[0])) < 2**31 or values[0] % 1:
        raise UserError(f"{path}: expected one whole number as label, found a {type(value).__name__}")
    return int(values[0])
