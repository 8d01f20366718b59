"""Time and memory of a training step of each stage of NeuroLM, and of answering, at the official batch shapes.

python benchmarks/steps.py --size B --device cpu
python benchmarks/steps.py --size B --device cuda --dtype bfloat16 --repeats 20

The shapes are those of the figures in docs/performance.md: stage 1 and 2 with 2 windows of 1024 EEG tokens and one of
1024 text tokens, stage 3 with 8 samples of 230 EEG tokens and one text window, answering 16 such samples.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.tasks import TASKS
from dataset.text import load_tokenizer
from model.neurolm import LM_SIZES, TEXT_ROWS, NeuroLM
from model.vq import VQ_Align
from utils import decay_groups, make_optimizer, start_run


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LM_SIZES, default="B")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--windows", type=int, default=2, help="EEG windows of 1024 tokens in stages 1 and 2")
    return parser.parse_args()


def make_eeg(samples: int, channels: int, seconds: int, device) -> dict:
    """Random EEG of one montage: tokens by second, then channel."""
    time_of = torch.arange(seconds).repeat_interleave(channels).expand(samples, -1)
    chans = torch.arange(channels).repeat(seconds).expand(samples, -1)
    x = torch.randn(samples, channels * seconds, 200)
    return {"x": x.to(device), "chans": chans.to(device), "time": time_of.to(device), "valid": None}


def measure(name: str, work, run, repeats: int) -> None:
    """Print the median time of `work`, which is called once more before, and the peak memory."""
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if run.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    median = sorted(seconds[1:])[repeats // 2]
    print(json.dumps({"work": name, "seconds": round(median, 4), "peak_gib": round(memory, 2)}), flush=True)


def main(args):
    run = start_run(args.device, args.dtype)
    print(json.dumps({"device": str(run.device), "dtype": str(run.dtype), "threads": torch.get_num_threads()}))
    eeg = make_eeg(args.windows, 32, 32, run.device)  # 1024 tokens a window
    tokens = torch.randint(TEXT_ROWS - 100, (1, 1024), device=run.device)
    text = {"tokens": tokens, "target": tokens.roll(-1, 1)}

    vq = VQ_Align.from_size(args.size).to(run.device)
    optimizer = make_optimizer(decay_groups(vq, 0.1), 1e-5, (0.9, 0.95), run.device)

    def step(losses):
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def train_tokenizer():
        with run.autocast():
            sums = vq(eeg, tokens, 0.5)
        step(sums[name] for name in ("commitment", "frequency", "raw", "domain_eeg", "domain_text"))

    measure("stage 1", train_tokenizer, run, args.repeats)

    tokenizer = vq.VQ.eval().requires_grad_(False)
    model = NeuroLM.from_size(args.size, tokenizer.encoder.config, tokenizer.quantize.n_codes)
    model.tokenizer = tokenizer.encoder
    model.to(run.device)
    optimizer = make_optimizer(decay_groups(model, 0.1), 1e-5, (0.9, 0.95), run.device)
    source = torch.cat([torch.arange(1024 - 32) + row * 1024 for row in range(args.windows)]).to(run.device)

    def pretrain():
        with run.autocast():
            codes, features = tokenizer.tokenize(eeg)
            target = codes.flatten()[source + 32] + TEXT_ROWS
            sums = model(eeg=eeg | {"features": features, "source": source, "target": target}, text=text)
        step(part["loss"] for part in sums.values())

    measure("stage 2", pretrain, run, args.repeats)

    words, task = load_tokenizer(), TASKS["TUAB"]
    question, supervised = task.encode(words, 1)
    short = make_eeg(8, 23, 10, run.device)  # 230 tokens a sample
    length = 230 + len(question)
    source_3 = torch.tensor([row * length + 230 + i for row in range(8) for i in supervised], device=run.device)
    target_3 = torch.tensor([question[i + 1] for i in supervised] * 8, device=run.device)
    asked = short | {"tokens": torch.tensor([question] * 8, device=run.device), "source": source_3, "target": target_3}

    def instruct():
        with run.autocast():
            sums = model(eeg=asked, text=text)
        step(part["loss"] for part in sums.values())

    measure("stage 3", instruct, run, args.repeats)

    model.eval()
    many = make_eeg(16, 23, 10, run.device)
    prompt = torch.tensor([task.prompt(words)] * 16, device=run.device)

    def answer():
        with run.autocast():
            model.score_answers(many | {"tokens": prompt}, task.options(words), whole=False)

    measure("answering 16 samples", answer, run, args.repeats)


if __name__ == "__main__":
    main(get_args())
