"""The one exception whose message is all that the user needs: which file, which value, what was expected, the cure."""

import sys


class UserError(Exception):
    """Bad input. `run` prints it as one line, without a traceback, and exits with status 2."""


def run(main, get_args) -> None:
    """Run a script: `main(get_args())`; a UserError becomes one line on stderr and exit status 2."""
    try:
        main(get_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
