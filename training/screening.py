"""Before anything is trained or answered: are the data what manifests say, are they EEG, is nobody on both sides?"""

from dataclasses import replace
from pathlib import Path

from dataset.checks import check_recordings
from dataset.leaks import Roster, few, find_leaks, read_roster
from dataset.protocol import PUBLISHED
from dataset.verify import verify_files
from errors import UserError
from model.weights import read_checkpoint

TRAINED_ON = "trained_on"  # the key of checkpoints
FIELDS = {"dataset": str, "name": str, "corpus": str | None, "nameless": int, "subjects": str, "recordings": str}


def screen(args, run, sets: dict, folders, starts_from=None, protocol=PUBLISHED) -> tuple[list[dict], dict]:
    """Hold the windows that a run reads against their manifests and against one another.

    sets: {split: [Windows]}, those of "val" and "test" judge the model; folders: their dataset folders; starts_from:
    the checkpoint whose weights the run begins with, and whose subjects count as trained on. -> what checkpoints keep
    as `trained_on`, and what results keep: the protocol, `leaks`, what could not be compared, and splits that tear
    subjects apart.
    Raises UserError for a file that is not its manifest's (--verify), a recording that is no EEG, and, without
    --allow_leak, subjects that are on both sides; for a model that is only asked, where it was calibrated otherwise.
    """
    if args.verify:
        verify_files([recording for windows in _flat(sets) for recording in windows.recordings], run)
    judging = [split for split in sets if split != "train"]
    for split in judging:
        for windows in sets[split]:
            check_recordings(windows, run)

    if starts_from and "train" not in sets:
        check_calibration(read_checkpoint(starts_from, whole=False), starts_from, protocol.calibrate)
    rosters = {Path(folder).resolve(): read_roster(folder) for folder in folders}  # tasks may share one
    rosters = [_as_read(roster, folder, sets) for folder, roster in rosters.items()]
    trained = read_trained(starts_from) if starts_from else []
    if "train" in sets:
        trained += [mine for mine in (roster.trained(["train"]) for roster in rosters) if mine not in trained]
        judging = ["val", "test"]
    found = find_leaks(trained, rosters, judging, across=protocol.folds is not None)
    leaks = found.leaks + found.published
    if found.leaks and not args.allow_leak:
        raise UserError(
            f"subjects are on both sides, {len(found.leaks)} in all, which makes results too good: {few(found.leaks)}. "
            "Make the training set again without them (prepare_TUH_pretrain.py has --exclude), or go on with "
            "--allow_leak, which results.json will say"
        )
    for title, lines in (("subjects on both sides", leaks), ("subjects not compared", found.not_compared)):
        if lines:
            run.say(f"warning: {title}: {few(lines)}")
    within = [roster.within for roster in rosters if roster.within and not protocol.folds]
    found = {"leaks": leaks, "not_compared": found.not_compared, "within_subjects": within}
    return trained, protocol.about() | found


def check_calibration(checkpoint: dict, source, calibrate: str | None = None) -> None:
    """Raise UserError where a model is to be asked about EEG that is not calibrated as what it was trained on."""
    config = checkpoint.get("config")
    trained = config.get("calibrate") if isinstance(config, dict) else None
    if trained != calibrate:
        raise UserError(
            f"{source} was trained with --calibrate {trained or 'left out'} and is asked with {calibrate or 'none'}: "
            "evaluate it as it was trained"
        )


def _as_read(roster: Roster, folder: Path, sets: dict) -> Roster:
    """The roster with each recording in the split that this run reads it in, which folds may have changed; what is in
    its training split and not read, nobody is trained on, and who is only asked has no other split."""
    read, inside = {}, {}  # inside: whether a folder of files is below this one
    for split, recording in ((s, r) for s, several in sets.items() for windows in several for r in windows.recordings):
        place = recording.path.parent
        if place not in inside:
            inside[place] = folder in (place.resolve() / "file").parents
        if inside[place]:
            read[recording.name] = split
    unread = {"val", "test"} if "train" in sets else set()
    rows = [replace(row, split=read.get(row.recording, row.split)) for row in roster.rows]
    kept = (row for row in rows if row.recording in read or row.split in unread or not row.recording)
    return replace(roster, rows=tuple(kept))


def _flat(sets):
    return [windows for several in sets.values() for windows in several]


def read_trained(path) -> list[dict]:
    """Who the model of a checkpoint was trained on, as `Roster.trained` gives it; somebody without a name where it does
    not say. Raises UserError for a malformed one."""
    entries = read_checkpoint(path, whole=False).get(TRAINED_ON)
    if entries is None:
        return [Roster.unknown(str(path)).trained(["train"])]
    sound = isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name, ...), kind) for name, kind in FIELDS.items())
        for entry in entries
    )
    if not sound:
        raise UserError(f"{path}: '{TRAINED_ON}' is not a list of {', '.join(FIELDS)}, as the trainers write it")
    return list(entries)
