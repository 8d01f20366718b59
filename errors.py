"""The one exception whose message is all that the user needs: which file, which value, what was expected, the cure."""

import sys
import traceback

from tqdm import tqdm

LOST_PROCESS = ("gloo/transport", "NCCL", "TCPStore")  # in what torch.distributed says when a process is gone


class UserError(Exception):
    """Bad input. `run` prints it as one line, without a traceback, and exits with status 2."""


def described(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400].removesuffix(": ")


def run(main, get_args) -> None:
    """Run a script: `main(get_args())`; a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130;
    a process that is left alone by the others says so and ends with 1."""
    try:
        main(get_args())
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, also beside a progress bar
        sys.exit(2)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST_PROCESS):
            raise
        traceback.print_exc()
        tqdm.write(
            "error: another process of this run has ended or hangs; its own message is above, or in its log. The last "
            "checkpoint is untouched: run the same command again, it resumes",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        tqdm.write("interrupted", file=sys.stderr)
        sys.exit(130)
