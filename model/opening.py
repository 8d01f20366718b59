"""Any weights to their model: which of the five it is, the names of the tensors say."""

from errors import UserError
from model.hub import HubModel
from model.labram import Classifier, model_state
from model.labram_masked import MaskedModel
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from model.vqnsp import VQNSP

KINDS = {"VQ.": VQ_Align, "GPT2.": NeuroLM, "lm.": NeuroLM}
KINDS |= {"student.": MaskedModel, "quantize.": VQNSP, "head.": Classifier}


def open_model(found: dict, source: str, kinds=()) -> HubModel:
    """The model in what `read_weights` found, one of the classes named `kinds` (none: any). Raises UserError for
    anything else."""
    names = list(model_state(found["checkpoint"]))
    kind = next((kind for first, kind in KINDS.items() if any(name.startswith(first) for name in names)), None)
    known = kinds or [kind.__name__ for kind in KINDS.values()]
    if kind is None or kind.__name__ not in known:
        held = f"a {kind.__name__}" if kind else f"tensors of no known model ({', '.join(names[:3]) or 'none'})"
        raise UserError(f"{source} holds {held}, expected {' or '.join(known)}")
    return kind.from_found(found, source)
