"""How --help shows flags, and what their numbers may be, checked when they are parsed."""

import argparse
import math


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands, and the default of every flag that has one, as it would be typed."""

    def _get_help_string(self, action):
        said, default = action.help or "", action.default
        if default in (None, argparse.SUPPRESS, []) or action.required or "default" in said:
            return said
        typed = " ".join(map(str, default)) if isinstance(default, list | tuple) else "%(default)s"
        return f"{said} (default: {typed})".strip()


def at_least(least, below=math.inf):
    """An argparse type: a number of the kind of `least`, neither under it nor `below` or above."""
    kind = type(least)

    def parse(text: str):
        number = kind(text)
        if not least <= number < below:
            raise argparse.ArgumentTypeError(f"{text} is not in the range {least} <= number < {below}")
        return number

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


positive = at_least(1)
natural = at_least(0)
nonnegative = at_least(0.0)
share = at_least(0.0, below=1.0)
minutes = at_least(0.01, below=1e5)
