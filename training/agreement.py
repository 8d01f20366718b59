"""Whether a resumed run is the run that was started: what shapes a training, held against its checkpoint.

Every flag of the six scripts is in KINDS. Where data, tokenizer, tasks or model differ, the run is refused, unless
--allow_changed names what differs; schedule and optimizer follow the new flags, which is said.
"""

import re

from errors import UserError

INPUTS = ("datasets", "labels", "text", "lm", "tokenizer", "weights", "tasks")  # what the flags of "content" lead to
_KINDS = {
    # what is trained, and on which samples: refused
    "fixed": """seed size model init_from standardize band_power dropout drop_path block_size layer_scale_init_value
        qkv_bias rel_pos_bias abs_pos_emb tune lora_rank model_ema codebook_n_emd codebook_emd_dim codebook_size
        codebook_dim quantize_kmeans_init tokenizer_model smoothing mixing mixing_temperature length_pool
        overfit_batches answer_by official_padding folds fold fold_seed calibrate exclude_fold
        hours resident_recordings""",
    # schedule and optimizer: the new values hold from here on
    "applied": """epochs warmup_epochs warmup_ratio max_steps batch_size eeg_batch_size text_batch_size update_freq
        gradient_accumulation_steps learning_rate lr min_lr decay_lr weight_decay beta1 beta2 opt opt_betas opt_eps
        layer_decay grad_clip clip_grad ema_decay model_ema_decay revive_dead_codes dtype
        cache_half""",
    # places, which may move: what they hold is compared, as one of INPUTS
    "content": """dataset_dir datasets dataset text_dir tasks tokenizer_path tokenizer_weight NeuroLM_path finetune lm
        lm_revision""",
    # read where a run starts, and not by one that goes on
    "start": "gpt2_path",
    # how and where it runs, and what it writes
    "free": """out_dir output_dir log_dir num_workers cache_features device compile fsdp checkpoint_activations resume
        allow_changed eval eval_only save_ckpt_freq keep save_every_minutes save_every_steps log_interval profile
        wandb_log wandb_project wandb_runname wandb_api_key timeout_minutes verify allow_leak""",
}
KINDS = {kind: tuple(names.split()) for kind, names in _KINDS.items()}
CHANGEABLE = (*INPUTS, *KINDS["fixed"])
HASH = re.compile("[0-9a-f]{64}")


def agree(now: dict, before: dict, path, allowed=()) -> tuple[dict, list[str]]:
    """Hold what makes a run against the checkpoint that it continues. now: its `config` (flags) and `inputs` (of
    `describe_inputs`); before: the checkpoint at `path`; allowed: names of CHANGEABLE that may differ.

    Returns the configuration that holds from here on, and a sentence for each difference. Raises UserError with one
    line on all that differs and is not allowed.
    """
    if not isinstance(before.get("config"), dict):
        return now["config"], [f"{path} does not say how it was made, nothing can be compared"]
    differing, unknown = compare(now, before)
    refused = {name: said for name, said in differing.items() if name in CHANGEABLE and name not in allowed}
    if refused:
        raise UserError(
            f"{path} was made otherwise: {'; '.join(refused.values())}. Give what it was made with, start anew with "
            f"--no-resume, or go on all the same: --allow_changed {' '.join(refused)}"
        )
    config, lines = dict(now["config"]), []
    if unknown:
        lines.append(f"{path} does not say its {', '.join(unknown)}, which cannot be compared")
    for name, said in differing.items():
        if name in KINDS["start"]:
            config[name] = before["config"][name]
            lines.append(f"{said}: no longer read, the run had started")
        else:
            lines.append(f"resumed{', as allowed' * (name in allowed)}: {said}")
    return config, lines


def compare(now: dict, before: dict) -> tuple[dict[str, str], list[str]]:
    """What differs between two runs, {name: sentence with both values}, and the names that `before` does not know."""
    ours, theirs = shaping(now["config"]), shaping(before["config"])
    if theirs.get("dtype") == "auto":  # of an earlier version, which kept the flag and not what it had come to
        theirs["dtype"] = ours["dtype"]
    unknown = [name for name in ours if name not in theirs]
    differing = {
        name: f"--{name} is {_text(value)}, was {_text(theirs[name])}"
        for name, value in ours.items()
        if name in theirs and value != theirs[name]
    }
    ours, theirs = now["inputs"], before.get("inputs")
    if not isinstance(theirs, dict):
        return differing, unknown + list(ours)
    for name, value in ours.items():
        if name in theirs and not _same(value, theirs[name]):
            said = _differing(value, theirs[name])
            differing[name] = "{} is {}, was {}".format(name, *said)
    return differing, unknown


def shaping(config: dict) -> dict:
    """The flags that shape a training, of all the flags of a run."""
    names = [name for name in config if name in KINDS["fixed"] + KINDS["applied"] + KINDS["start"]]
    return {name: list(value) if isinstance(value := config[name], tuple) else value for name in names}


def history(now: dict, before: dict, step: int) -> list[dict]:
    """The configurations of a run with the step from which each held: those of the checkpoint `before`, and that of
    `now` from `step` on, where it is another one."""
    known = list(before.get("history", []))
    if before and not known:  # of an earlier version
        known = [{"step": 0, "config": shaping(before.get("config", {})), "inputs": before.get("inputs", {})}]
    entry = {"step": step, "config": shaping(now["config"]), "inputs": now["inputs"]}
    if not known or any(not _same(known[-1][part], entry[part]) for part in ("config", "inputs")):
        known.append(entry)
    return known


def _same(a, b) -> bool:
    return a == b and (not isinstance(a, dict) or list(a) == list(b))  # datasets and tasks have an order


def _differing(now, before) -> tuple[str, str]:
    """Both values; of dictionaries the entries that differ, or the order of their names."""
    if not (isinstance(now, dict) and isinstance(before, dict)):
        return _text(now), _text(before)
    names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
    if not names:
        return _text(list(now)), _text(list(before))
    return tuple(", ".join(f"{name} {_text(side.get(name))}" for name in names) for side in (now, before))


def _text(value) -> str:
    if value is None:
        return "nothing"
    return value[:12] if isinstance(value, str) and HASH.fullmatch(value) else repr(value)
