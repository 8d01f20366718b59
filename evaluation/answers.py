"""A NeuroLM or a LaBraM classifier asked about the labelled windows of whole sets."""

import torch

from dataset.batches import collate_eeg, collate_montage
from dataset.tasks import first_tokens_differ
from dataset.text import tokenizer_of
from evaluation.scoring import Evaluation, collect, evaluate
from model.labram import class_probabilities
from training.loading import evaluation_loader


def answer_tasks(model, windows, split, batch_size, run, num_workers=0, answer_by="score", trained=None):
    """Let a NeuroLM answer the labelled windows of each task, {task: Windows} -> list of Evaluation; `answer_by` as in
    `make_predict`; trained: a checkpoint's rows of the tasks that it has learnt, None: these. See `choose_scoring`."""
    model.eval()
    evaluations = []
    for task, task_windows in windows.items():
        batches = evaluation_loader(task_windows, batch_size, run, collate_eeg, num_workers)
        known = trained is None or is_among(task, trained)
        way, said = choose_scoring(task, known, answer_by, model)
        predictions = collect(make_predict(model, task, run, way), batches, len(task_windows))
        about = {"name": task.name, "split": split, "answers": task.answers, "metrics": task.metrics}
        evaluations.append(evaluate(predictions, task_windows.describe(), **about))
        evaluations[-1].notes.extend([said] if said else [])
    return evaluations


def is_among(task, rows) -> bool:
    """Whether a checkpoint's rows of tasks (of `describe_tasks`) have this question with these answers."""
    known = [row for row in rows if isinstance(row, dict) and row.get("question") == task.question]
    return any(row.get("answers") in (task.answers, list(task.answers)) for row in known)


def choose_scoring(task, trained: bool, answer_by: str, model=None) -> tuple[str, str]:
    """The way to let a model answer a task (`answer_by` of `make_predict`), and a sentence where "score" becomes
    another one.

    The sum of a long answer's log-likelihoods is lower for its length alone. A model trained on the task has learnt to
    take that into account, so that the sum is its posterior; one that was never asked it has not: where the answers
    then differ in their number of tokens, "score" is "score_per_token".
    """
    lengths = {len(option) for option in task.options(tokenizer_of(model))}
    if answer_by != "score" or trained or len(lengths) == 1:
        return answer_by, ""
    return "score_per_token", (
        f"not a task of the training, and its answers have {min(lengths)} to {max(lengths)} tokens: scored by their "
        "log-likelihood per token (--answer_by score_sum: by its sum, which prefers short answers)"
    )


def classify_windows(model, windows, answers, *, name, split, batch_size, run, num_workers=0) -> Evaluation:
    """Let a LaBraM classifier label the labelled windows (Windows) of one dataset."""
    model.eval()

    @torch.no_grad()
    def predict(batch):
        with run.autocast():
            logits = model(batch["x"], batch["chans"])
        return batch["index"], batch["label"], class_probabilities(logits)

    batches = evaluation_loader(windows, batch_size, run, collate_montage, num_workers, windows.same_shape())
    predictions = collect(predict, batches, len(windows))
    return evaluate(predictions, windows.describe(), name=name, split=split, answers=answers)


def make_predict(model, task, run, answer_by: str = "score"):
    """The `predict` of a NeuroLM and a task, for `collect`.

    answer_by: "score" and "score_sum" give each allowed answer the softmax of its log-likelihood (of its first token
    where that tells the answers apart); "score_per_token" that of its mean over all tokens of the answer, its end
    included; "generate" lets the model write, and parses what it wrote: probability 1 for one answer, 0 for all where
    it wrote none of them.
    """
    tokenizer = tokenizer_of(model)
    options = task.options(tokenizer)
    prompt = torch.tensor(task.prompt(tokenizer), device=run.device)
    longest = max(map(len, options))
    per_token = answer_by == "score_per_token"

    def ask(batch):
        return batch | {"tokens": prompt.expand(len(batch["label"]), -1)}

    def score(batch):
        with run.autocast():
            likelihoods = model.score_answers(ask(batch), options, whole=per_token or not first_tokens_differ(options))
        likelihoods = likelihoods.double()
        if per_token:
            likelihoods = likelihoods / likelihoods.new_tensor([len(option) for option in options])
        return batch["index"], batch["label"], likelihoods.softmax(-1)

    def generate(batch):
        with run.autocast():
            written = model.generate(ask(batch), longest, tokenizer.end)
        probabilities = torch.zeros(len(written), len(options))
        for row, ids in enumerate(written.tolist()):
            if min(ids) < 0:
                probabilities[row] = torch.nan
                continue
            ids = ids[: ids.index(tokenizer.end) + 1] if tokenizer.end in ids else ids
            same = ids in options  # its words may be spelt otherwise when the tokenizer reads them back
            label = options.index(ids) if same else task.parse(tokenizer.decode(ids))
            if label is not None:
                probabilities[row, label] = 1
        return batch["index"], batch["label"], probabilities

    return generate if answer_by == "generate" else score
