"""The one exception whose message is all that the user needs: which file, which value, what was expected, the cure."""

import sys

from tqdm import tqdm


class UserError(Exception):
    """Bad input. `run` prints it as one line, without a traceback, and exits with status 2."""


def run(main, get_args) -> None:
    """Run a script: `main(get_args())`; a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130."""
    try:
        main(get_args())
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, also beside a progress bar
        sys.exit(2)
    except KeyboardInterrupt:
        tqdm.write("interrupted", file=sys.stderr)
        sys.exit(130)
