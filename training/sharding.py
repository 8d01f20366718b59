"""FSDP2: parameters, gradients and optimizer state in shards, one a process; checkpoints stay whole, as without it."""

import copy
import warnings

import torch
from torch import nn

from errors import UserError


def shard(model: nn.Module, run) -> nn.Module:
    """Shard the trained parameters of `model` over the processes, block by block; frozen ones stay whole.

    A block is a module in a list of modules. Returns the same modules without values, for `filled_copy`. Raises
    UserError for fp16, whose loss scale the shards cannot agree on.
    """
    from torch.distributed.fsdp import fully_shard  # a second that only sharded runs spend

    if run.dtype == torch.float16:
        raise UserError("--fsdp does not go with --dtype float16: take bfloat16 or float32")
    # blocks return keys and values, which are views; nobody writes into them
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    valueless = {id(value): nn.Parameter(value.to("meta"), requires_grad=False) for value in model.parameters()}
    valueless |= {id(value): value.to("meta") for value in model.buffers()}
    template = copy.deepcopy(model, valueless)
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            if not frozen.issuperset(block.parameters()):
                fully_shard(block, ignored_params=frozen)
    fully_shard(model, ignored_params=frozen)
    return template


def is_sharded(model: nn.Module) -> bool:
    return any(map(_in_shards, model.parameters()))


def _in_shards(value) -> bool:
    """Whether this is a DTensor."""
    return hasattr(value, "full_tensor")


def filled_copy(template: nn.Module, model: nn.Module, device) -> nn.Module:
    """The sharded model as a whole one on every process; every process must call this."""
    whole_model = copy.deepcopy(template).to_empty(device=device)
    values = model.state_dict()
    for name, value in whole_model.state_dict().items():
        value.copy_(whole(values[name]))  # one by one: there is room for one copy of a large model, not for two
    for mine, theirs in zip(whole_model.buffers(), model.buffers(), strict=True):  # also those in no state
        mine.copy_(theirs)
    return whole_model


def whole(value):
    """A tensor with its shards put together; every process must call this."""
    return value.full_tensor() if _in_shards(value) else value


def whole_state(state, keep: bool):
    """A nested state with its shards put together, on the host of the process that keeps it; every process must call
    this. The others get None where a tensor was sharded."""
    if isinstance(state, dict):
        return {name: whole_state(value, keep) for name, value in state.items()}
    if not _in_shards(state):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if keep else None


def sharded_like(state: dict, target: dict) -> dict:
    """A whole state with the shards of this process in place of the tensors that are sharded in `target`."""
    return {name: _shard_like(value, target.get(name)) for name, value in state.items()}


def _shard_like(value, target):
    if not (_in_shards(target) and isinstance(value, torch.Tensor) and value.shape == target.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: str) -> None:
    """Load a whole state into an optimizer, of sharded parameters or not; the options of its groups (weight decay,
    betas, ...) stay its own. Raises UserError for other parameters, and for a state that is damaged."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        groups, own_groups = state.get("param_groups", ()), optimizer.state_dict()["param_groups"]
        sizes, own = ([len(group["params"]) for group in part] for part in (groups, own_groups))
        if sizes != own:
            raise UserError(
                f"{source}: its optimizer has groups of {sizes} tensors, not {own}: --no-resume starts anew"
            )
        for index, values in state["state"].items():
            shapes = {value.shape for value in values.values() if value.dim()}
            if shapes - {parameters[index].shape}:
                raise ValueError(f"tensor {index} has averages of another size")
        shards = {
            index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        kept = ("params", "lr")  # the schedule sets the rate in every step
        groups = [
            own | {name: group[name] for name in kept if name in group}
            for own, group in zip(own_groups, groups, strict=True)
        ]
        optimizer.load_state_dict(state | {"state": shards, "param_groups": groups})
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: its optimizer is damaged ({error!r}): --no-resume starts anew") from None
