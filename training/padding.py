"""Official padding: whether an encoder's GroupNorm averages over windows filled with zeros, as a run or a model began.

The official code fills every window to one length before its encoder, whose GroupNorm averages over the filling too.
"""

from pathlib import Path

from errors import UserError
from model.neural_transformer import NeuralTransformer, NTConfig
from model.weights import parts, read_checkpoint, settings
from utils import Run

QUESTION_TOKENS = 276  # of a window in stage 3; stages 1 and 2 fill to --block_size


def choose_padding(encoder: NeuralTransformer, wanted: bool | None, length: int, run: Run, newest=None) -> bool:
    """Let the encoder normalise over windows filled to `length` tokens if `wanted`; None: if its checkpoint does.

    newest: the checkpoint of a run that goes on, which decides where it says it. Returns the choice.
    Raises UserError where `wanted` is not what that run began with.
    """
    before = encoder.config.norm_over_padding
    began = None if newest is None else _padding_of(newest)
    if wanted is not None and began is not None and wanted != began:
        raise UserError(
            f"--{'' if wanted else 'no-'}official_padding: the run of {newest} began {'with' if began else 'without'} "
            "it: leave the flag out to go on, or begin anew with --no-resume"
        )
    chosen = next(value for value in (began, wanted, before) if value is not None)
    encoder.pad_windows(length if chosen else 0)
    if chosen:
        run.say(f"official padding: the encoder's GroupNorm averages over windows filled with zeros to {length} tokens")
    elif before:
        run.say("no official padding, though the encoder's checkpoint was made with it: its features are other ones")
    return chosen


def _padding_of(path: Path) -> bool | None:
    """Whether a checkpoint was made with official padding; None where it does not say, as official ones."""
    checkpoint = read_checkpoint(path, whole=False)
    if "encoder_args" not in checkpoint:
        return None
    (args,) = parts(checkpoint, ["encoder_args"], str(path), "it is no checkpoint of NeuroLM")
    return settings(NTConfig, args, f"{path}, encoder_args").norm_over_padding
