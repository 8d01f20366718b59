"""Datasets in object storage, by way of fsspec: s3://bucket/sets is read and written through folders of a local cache.

A path <cache>/s3/bucket/sets/TUAB/train/x.h5 stands for the object s3://bucket/sets/TUAB/train/x.h5: `local` gives the
path of an address, and what opens a file calls `fetch` first. Descriptions and manifests are read anew by every run;
whole recordings come when they are opened, and those least recently used go before there is more of them than the
cache may hold. NEUROLM_CACHE is its folder (~/.cache/neurolm), NEUROLM_CACHE_GB its size (100). Processes share it.
"""

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

from errors import UserError, described

WAITS = (1, 5, 0)  # seconds after an attempt that failed
BLOCK = 2**23  # bytes that are asked for at once
KEPT = 0.9  # of the size, when something has to go: not with every file
ABANDONED = 24 * 3600  # seconds after which a download is taken to be a dead process's
FULL = (errno.ENOSPC, errno.EDQUOT)
_MANIFEST = ("dataset.yaml", "manifest.csv")  # in this order: a folder with a manifest is a dataset


def local(place) -> Path:
    """The path that stands for an address such as s3://bucket/sets; any other path is itself. Raises UserError for an
    address that no installed package can read."""
    protocol, mark, key = str(place).partition("://")
    if not mark:
        return Path(place)
    parts = key.strip("/").split("/")
    if not set(parts).isdisjoint({"", ".", ".."}):
        raise UserError(f"{place}: expected {protocol}://bucket/folder, without . and ..")
    _file_system(protocol)
    return _cache().joinpath(protocol, *parts)


def shown(path) -> str:
    """What a path is called in messages: its address, if it stands for one."""
    where = _address(path)
    return "://".join(where) if where else str(path)


def bring(folder) -> None:
    """Bring up to date what describes the datasets at, and right below, a folder that stands for an address. Where a
    manifest has changed, the recordings of the former one leave the cache."""
    folder = Path(folder)
    if _address(folder):
        found = names(folder)
        for one in [folder] if found & set(_MANIFEST) else [folder / name for name in sorted(found)]:
            _bring_one(one)


def _bring_one(folder) -> None:
    for path in (folder / name for name in _MANIFEST):
        content = _ask(path, _read)
        before = path.read_bytes() if path.is_file() else None
        if path.name == "manifest.csv" and content != before:
            for split in ("train", "val", "test"):
                shutil.rmtree(folder / split, ignore_errors=True)
        if content is None:
            path.unlink(missing_ok=True)
        elif content != before:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = _part(path)
            part.write_bytes(content)
            part.replace(path)


def names(folder) -> set[str]:
    """The names in a folder; none where there is no such folder."""
    if _address(folder):
        return _ask(folder, lambda files, key: {found.rstrip("/").rsplit("/", 1)[-1] for found in _list(files, key)})
    return set(os.listdir(folder)) if Path(folder).is_dir() else set()


def fetch(path) -> None:
    """Bring the file that a path stands for, if it is not there. Raises UserError where that cannot be done."""
    path = Path(path)
    if _address(path):
        try:
            os.utime(path)  # used now
        except FileNotFoundError:
            _ask(path, lambda files, key: _download(path, files, key))


def publish(path, keep: bool = True) -> None:
    """Write a file to the address that its path stands for, in whole or not at all; keep: leave it here, too."""
    if _address(path):
        _ask(path, lambda files, key: files.put_file(str(path), key))
        if not keep:
            Path(path).unlink()


def remove(path) -> None:
    """Remove a file, if it is there."""
    if _address(path):
        _ask(path, _remove)
    Path(path).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- addresses


def _cache() -> Path:
    return Path(os.environ.get("NEUROLM_CACHE") or "~/.cache/neurolm").expanduser().absolute()


def _address(path) -> tuple[str, str] | None:
    """The protocol and the key that a path stands for."""
    path, cache = Path(path).absolute(), _cache()
    if cache not in path.parents or path.parent == cache:
        return None
    protocol, *parts = path.relative_to(cache).parts
    return protocol, "/" * (protocol == "file") + "/".join(parts)


def _file_system(protocol):
    import fsspec  # here: most runs need none

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)  # of this process: those do not survive a fork
    except (ImportError, ValueError) as error:
        needed = "pip install -r requirements-s3.txt" if protocol == "s3" else "install what it needs"
        raise UserError(f"{protocol}:// cannot be opened ({described(error)}): {needed}") from None


def _ask(path, work):
    """work(file system, key), again where the connection breaks. Raises UserError naming the address."""
    protocol, key = _address(path)
    for wait in WAITS:
        try:
            return work(_file_system(protocol), key)
        except UserError:
            raise
        except PermissionError as error:
            raise UserError(f"{shown(path)}: access denied ({described(error)}); check the keys") from None
        except Exception as error:  # each package has its own for a connection that breaks
            failure = error
            if getattr(error, "errno", None) in FULL:
                _evict(_evict(float("inf")) // 2)
            time.sleep(wait)
    if getattr(failure, "errno", None) in FULL:
        raise UserError(
            f"the disk of NEUROLM_CACHE {_cache()} is full: {shown(path)} cannot be kept; give a folder on another "
            "one, or a lower NEUROLM_CACHE_GB"
        )
    raise UserError(
        f"{shown(path)} cannot be read or written, tried {len(WAITS)} times ({described(failure)}); check address, "
        "keys and network, and run this again"
    )


def _read(files, key) -> bytes | None:
    try:
        return files.cat_file(key)
    except (FileNotFoundError, IsADirectoryError):
        return None


def _remove(files, key) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.rm_file(key)


def _list(files, key) -> list[str]:
    try:
        return files.ls(key, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []


# ----------------------------------------------------------------------------------------------------------- cache


def _download(path, files, key) -> None:
    try:
        size = files.info(key)["size"]
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is not there; copy it, or run its maker again") from None
    part = _part(path)
    try:
        _reserve(part, size)
        with files.open(key, "rb", block_size=BLOCK) as source, open(part, "r+b") as file:
            shutil.copyfileobj(source, file, BLOCK)
            if file.tell() != size:
                raise ConnectionError(f"ended after {file.tell()} of {size} bytes")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part(path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _limit() -> int:
    text = os.environ.get("NEUROLM_CACHE_GB", "100")
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"NEUROLM_CACHE_GB is {text!r}, expected a number of GB") from None


def _reserve(part, size: int) -> None:
    """Make a file of a size, and room for it. What is there is counted in a file, not looked at for each download."""
    import fcntl  # here: Windows has none

    limit = _limit()
    if size > limit:
        raise UserError(f"{shown(part.parent)} has a file of {size} bytes, NEUROLM_CACHE_GB allows {limit} in all")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(_cache() / "bytes", "a+", encoding="utf-8") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)  # released when it is closed
        counter.seek(0)
        count = counter.read()
        if not count or int(count) + size > limit:
            count = _evict(limit - size)
        counter.truncate(0)
        counter.write(str(int(count) + size))
        counter.flush()
        with open(part, "wb") as file:
            file.truncate(size)


def _evict(most: float) -> int:
    """Remove the recordings least recently used, where there are more bytes of them than `most` -> what is left."""
    found = []
    for path in _cache().rglob("*.h5*"):
        try:
            about = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        found.append((about.st_mtime, about.st_size, path))
    left = sum(size for _, size, _ in found)
    for used, size, path in sorted(found) if left > most else ():
        if left <= most * KEPT:
            break
        if path.suffix != ".part" or time.time() - used > ABANDONED:
            path.unlink(missing_ok=True)
            left -= size
    return left
