"""YAML that others give, read within bounds: a few lines can name or nest more than a machine can hold. And names that
become paths."""

from collections import Counter

import yaml

from errors import UserError, check_file

MAX_YAML_BYTES = 2**20
MAX_DEPTH = 20  # of lists and mappings in each other
MAX_SCALAR = 10_000  # characters of one text or number
MAX_NAME = 200  # bytes of a name that becomes part of a file's: 255 fit, with what is added to it


def check_name(name, where) -> None:
    """Raise UserError for a name that a path is made of and that could lead out of its folder, or be no file's."""
    plain = isinstance(name, str) and name.isprintable() and name not in ("", ".", "..")
    if not plain or "/" in name or "\\" in name or len(name.encode(errors="replace")) > MAX_NAME:
        raise UserError(f"{where}: {str(name)[:80]!r} cannot be part of a file's name, which it has to be")


def read_yaml(path, as_text=False) -> object:
    """The content of a YAML file. as_text: every scalar as the text that was written: No is not the boolean False.

    Raises UserError naming the file when it cannot be read, is no YAML, says a thing twice, holds aliases, or is larger
    or deeper than a description can be.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}): give the path of a YAML file") from None
    return parse_yaml(content, path, as_text)


def parse_yaml(content: bytes, path, as_text=False) -> object:
    """As `read_yaml`, of the bytes that `path` holds."""
    kind = "BaseLoader" if as_text else "SafeLoader"
    loader = getattr(yaml, f"C{kind}", getattr(yaml, kind))  # the one in C where PyYAML has it
    try:
        if len(content) > MAX_YAML_BYTES:
            raise ValueError(f"more than {MAX_YAML_BYTES} bytes")
        text = content.decode("utf-8")
        _check_events(yaml.parse(text, Loader=loader))
        repeated = _repeated_key(yaml.compose(text, Loader=loader))
        content = yaml.load(text, Loader=loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}): give the path of a YAML file") from None
    except (ValueError, OverflowError, TypeError, AttributeError, yaml.YAMLError) as error:  # a damaged date, int, ...
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if repeated:
        raise UserError(f"{path}: {repeated}: is written twice; keep one")
    return content


def _check_events(events) -> None:
    """Raise ValueError for what can fill a memory when it is built."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it holds the alias *{event.anchor[:40]}, write it out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            raise ValueError(f"a text or number of {len(event.value)} characters, {MAX_SCALAR} at most")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _repeated_key(node) -> str | None:
    """The first key that a mapping has twice, None where there is none."""
    keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((key for key, count in Counter(keys).items() if count > 1), None)
