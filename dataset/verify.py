"""What recordings' files hold, by their sha256: for --verify, the feature cache and check_dataset.py."""

import hashlib
from pathlib import Path

from dataset.storage import fetch
from errors import UserError


def hash_file(path) -> str:
    """sha256 of a file's content. Raises UserError when it cannot be read."""
    fetch(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def verify_files(recordings, run) -> None:
    """Hold the sha256 of each recording's file against its manifest; the processes share the work.

    Raises UserError naming the first file that differs, and for recordings whose manifest has no sums.
    """
    run.say(f"--verify: reading {len(recordings)} files")
    run.share(_verify, recordings)


def _verify(recording) -> None:
    if not recording.sha256:
        raise UserError(
            f"--verify: {recording.path} has no sha256 in a manifest, as datasets made here have; leave --verify out"
        )
    found = hash_file(recording.path)
    if found != recording.sha256:
        raise UserError(
            f"--verify: {recording.path} is not the file that its maker wrote: sha256 {found[:12]}..., the manifest "
            f"says {recording.sha256[:12]}...; copy it again, or run the maker again"
        )


def file_sums(recordings, run) -> dict[str, str]:
    """{path: sha256} of the files of recordings, read now: neither a date nor a manifest is taken for the content."""
    paths = sorted({Path(recording.path) for recording in recordings})
    return dict(zip(map(str, paths), run.share(hash_file, paths), strict=True))
