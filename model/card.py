"""The card of a model: what its checkpoint knows, as the README.md of a folder or a repository of the hub."""

STAGES = {
    "VQ_Align": "NeuroLM's tokenizer, stage 1: an EEG encoder, its codebook, and decoders",
    "NeuroLM": "NeuroLM, stage 2: a language model that predicts EEG and text",
    "VQNSP": "LaBraM's tokenizer, stage 1: an EEG encoder, its codebook, and a decoder",
    "MaskedModel": "LaBraM, stage 2: a transformer pre-trained on masked EEG",
    "Classifier": "LaBraM, stage 3: a classifier of EEG windows",
}
SILENT = "The checkpoint does not say."


def model_card(about: dict) -> str:
    """README.md of a model, from the contents of its config.json."""
    known, kind = about["checkpoint"], about["kind"]
    stage = STAGES[kind]
    if kind == "NeuroLM" and known.get("tasks"):
        stage = "NeuroLM, stage 3: a language model that answers questions about EEG"
    facts = {"commit": known.get("git_commit"), "steps": known.get("iter_num"), "epochs": known.get("epoch"),
             "sha256 of model.safetensors": about["sha256"]}  # fmt: skip
    lines = [
        "---", f"license: {about['license']}", "library_name: pytorch",
        "tags: [eeg, model_hub_mixin, pytorch_model_hub_mixin]", "---", "", f"# {stage}", "",
        *_table(["", ""], [[name, _text(value)] for name, value in facts.items()]), "",
        f"It reads EEG at 200 Hz in units of 100 uV: `{kind}.from_pretrained(...)`. Licence of these weights: "
        f"{about['license']}.",
        "", "## Trained on", "", *_corpora(known.get("trained_on")),
        "", "## Windows and channels", "", *_windows(known),
        "", "## Preprocessing", "", *_preprocessing(known.get("datasets") or {}),
        "", "## Results", "", *_results(about["results"], known),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _text(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if value in (None, ""):
        return "-"
    return str(round(value, 4) if isinstance(value, float) else value)


def _table(header, rows) -> list[str]:
    cells = [[" ".join(str(cell).replace("|", "/").split()) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]


def _corpora(entries) -> list[str]:
    if not entries:
        return [SILENT]
    rows = []
    for entry in entries:
        nameless = f" and {entry['nameless']} without a name" * bool(entry["nameless"])
        subjects = f"{len(entry['subjects'].split())}{nameless}"
        rows.append([entry["name"], *(_text(entry.get(name)) for name in ("corpus", "hours")), subjects])
    return _table(["dataset", "corpus", "hours", "subjects"], rows)


def _windows(known: dict) -> list[str]:
    tasks, config = known.get("tasks"), known.get("config") or {}
    if tasks:
        names = ("name", "question", "answers", "seconds", "channels")
        return _table(names, [[_text(task.get(name)) for name in names] for task in tasks])
    if "block_size" in config:
        return [f"Trained on windows of at most {config['block_size']} tokens (channels x seconds)."]
    return ["Trained on windows of 256 // channels seconds, 16 at most." if config else SILENT]


def _preprocessing(datasets: dict) -> list[str]:
    recipes = {name: row["preprocessing"] for name, row in datasets.items() if row.get("preprocessing")}
    lines = [line for name, text in recipes.items() for line in (f"{name}:", "```yaml", text.strip(), "```")]
    return lines or [SILENT]


def _results(rows, known: dict) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row[3]))
    cells = [[*row[:3], *(_text(row[3].get(name)) for name in names)] for row in rows]
    lines = _table(["dataset", "split", "of", *names], cells) if rows else ["None are stored with these weights."]
    leaks = [("Subjects on both sides", known.get("leaks")), ("Subjects not compared", known.get("not_compared"))]
    return lines + [line for title, found in leaks if found for line in ("", f"{title}: {'; '.join(found)}")]
