"""Public corpora fetched from PhysioNet: each file checked by its published sha256, those already there not again."""

import hashlib
import json
import re
from pathlib import Path

import pooch
from tqdm import tqdm

from errors import UserError

SUMS = "SHA256SUMS.txt"
ATTEMPTS = 4


def fetch(url, raw_dir, wanted, known=None) -> None:
    """Download the files of a PhysioNet folder whose names match the pattern `wanted`; a broken run can be repeated.

    known: the `digest` of the files' checksums, where the corpus is known. Raises UserError when the server or a file
    fails, or when a checksum does not fit.
    """
    url = url.rstrip("/") + "/"
    pooch.get_logger().setLevel("WARNING")
    try:
        Path(raw_dir, SUMS).unlink(missing_ok=True)  # without a sum of its own, pooch would take what is there
        text = Path(pooch.retrieve(url + SUMS, None, SUMS, raw_dir)).read_text(encoding="utf-8")
        sums = {name: sha256 for name, sha256 in _read_sums(text).items() if re.fullmatch(wanted, name)}
        if not sums:
            raise UserError(f"{url}{SUMS} names no file like {wanted}; give the address of the corpus's files")
        if known and digest(sums) != known:
            raise UserError(f"{url}{SUMS} does not have the published checksums; fetch from another mirror")
        registry = {name: f"sha256:{sha256}" for name, sha256 in sums.items()}
        files = pooch.create(raw_dir, url, registry=registry, retry_if_failed=ATTEMPTS)
        for name in tqdm(sorted(registry), desc=f"fetching {url}", unit="file"):
            files.fetch(name)
    except OSError as error:
        raise UserError(f"{url} cannot be fetched ({error}); run this again, it goes on from here") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; run this again, what is complete is kept") from None


def digest(sums) -> str:
    """One sha256 of {name: sha256}, whatever the order."""
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _read_sums(text) -> dict[str, str]:
    """{name: sha256} of a file of sums. Raises ValueError for a line that is none, or that leads out of the folder."""
    sums = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]?(?!/)(\S.*)", line)
        if not found or ".." in found[2].split("/"):
            raise ValueError(f"{SUMS} holds {line!r}, which is no checksum of a file")
        sums[found[2]] = found[1]
    return sums
