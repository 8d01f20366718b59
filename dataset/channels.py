"""The channel table that both systems share, and the ways recordings spell its names.

A channel's row in the table is what the models embed (LaBraM adds 1 for its class token). T7/T3, T8/T4, P7/T5 and P8/T6
are separate rows for the same places: a recording keeps the names it came with, unless a model or a set has the others.
"""

import functools
import re
from dataclasses import replace

import numpy as np

from dataset.descriptions import read_yaml
from errors import UserError

STANDARD_1020 = tuple(
    """
    FP1 FPZ FP2
    AF9 AF7 AF5 AF3 AF1 AFZ AF2 AF4 AF6 AF8 AF10
    F9 F7 F5 F3 F1 FZ F2 F4 F6 F8 F10
    FT9 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 FT10
    T9 T7 C5 C3 C1 CZ C2 C4 C6 T8 T10
    TP9 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 TP10
    P9 P7 P5 P3 P1 PZ P2 P4 P6 P8 P10
    PO9 PO7 PO5 PO3 PO1 POZ PO2 PO4 PO6 PO8 PO10
    O1 OZ O2 O9 CB1 CB2 IZ O10
    T3 T5 T4 T6 M1 M2 A1 A2
    CFC1 CFC2 CFC3 CFC4 CFC5 CFC6 CFC7 CFC8
    CCP1 CCP2 CCP3 CCP4 CCP5 CCP6 CCP7 CCP8
    T1 T2
    FTT9h TTP7h TPP9h FTT10h TPP8h TPP10h
    FP1-F7 F7-T7 T7-P7 P7-O1 FP2-F8 F8-T8 T8-P8 P8-O2
    FP1-F3 F3-C3 C3-P3 P3-O1 FP2-F4 F4-C4 C4-P4 P4-O2
    pad I1 I2
    """.split()  # noqa: SIM905 - laid out as on the head
)
# names of one place, old and new; rows of their own in the table, as released weights have them
OTHER_NAME = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
OTHER_NAME |= {new: old for old, new in OTHER_NAME.items()}
PAD_ROW = STANDARD_1020.index("pad")
# The 23 channels of TUAB, TUEV and TUSL, in the papers' order.
TUH_CHANNELS = tuple("FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 A1 A2 FZ CZ PZ T1 T2".split())  # noqa: SIM905

_ROWS = {name: row for row, name in enumerate(STANDARD_1020)}
_SPELLINGS = {name.upper(): name for name in STANDARD_1020 if name != "pad"}
_PREFIX = re.compile(r"^(EEG|POL)[ _-]+")
_SUFFIX = re.compile(r"[ _-]+(REF|LE|AVG|AVE|AV|AR|CAR|COMMON|LINKED)$")


def canonical_name(name, aliases=None) -> str | None:
    """The table's spelling of a recording's channel name, or None when the table has no such channel.

    Case, the prefix "EEG ", reference suffixes (-REF -LE -AVG -AR ...) and trailing dots do not count. A bipolar name
    matches as a whole or not at all: "A2-A1" is not "A2". `aliases` (from `load_aliases`) is asked first.
    """
    written = " ".join(str(name).upper().split())
    bare = _SUFFIX.sub("", _PREFIX.sub("", written).rstrip(". ")).rstrip(". ")
    for table in (aliases or {}, _SPELLINGS):
        for spelling in (written, bare):
            if spelling in table:
                return table[spelling]
    return None


def canonical_names(names, where="") -> tuple[str, ...]:
    """The table's spelling of each name. Raises UserError naming those that it does not have, and `where` they are."""
    found = tuple(map(canonical_name, names))
    unknown = [str(name) for name, place in zip(names, found, strict=True) if place is None]
    if unknown:
        raise UserError(
            f"{where}unknown channel {', '.join(unknown)}: not in the table of dataset/channels.py; "
            "drop it, or name its place in an alias file when making the dataset"
        )
    return found


def load_aliases(path) -> dict[str, str]:
    """Read a YAML map {name in the recordings: name in the table} for `canonical_name`.

    Raises UserError for a missing or malformed file and for a target that the table does not have.
    """
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"channel aliases {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"channel aliases {path}: expected lines such as 'E22: FP1', one a channel")
    aliases = {}
    for written, target in content.items():
        name = canonical_name(target)
        if name is None:
            line = f"{written}: {target}"[:80]
            raise UserError(f"channel aliases {path}: {line} is not a name of dataset/channels.py's table")
        aliases[" ".join(str(written).upper().split())] = name
    return aliases


@functools.lru_cache(maxsize=4096)
def _rows(names: tuple[str, ...]) -> np.ndarray:
    rows = np.array([_ROWS[name] for name in canonical_names(names)], dtype=np.int64)
    rows.flags.writeable = False  # shared by every caller through the cache
    return rows


def channel_rows(names) -> np.ndarray:
    """Rows of the table for channel names -> (C,) int64, read-only. Raises UserError naming the unknown ones."""
    return _rows(tuple(names))


def follow_places(sets, tasks) -> list[str]:
    """Let the Windows of `sets` call a channel by the other name of its place where a model knows that one alone, by
    `tasks`, the rows of its checkpoint -> a sentence for each."""
    known = {channel for row in tasks if isinstance(row, dict) for channel in row.get("channels") or ()}
    said = {}
    for recordings in (windows.recordings for windows in sets):
        for i, recording in enumerate(recordings):
            mine = {name: OTHER_NAME.get(name) for name in recording.channels}
            other = {old: new for old, new in mine.items() if old not in known and new in known and new not in mine}
            if other:
                recordings[i] = replace(recording, known_as=tuple(other.get(name, name) for name in mine))
            said |= other
    return [f"{old} is read as {new}, the model's name of the place" for old, new in said.items()]
