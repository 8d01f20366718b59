"""What the numbers of flags may be, checked when they are parsed."""

import argparse
import math


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
