"""Pictures of what a model makes of EEG: topographies, its attention, its codebook, its features in two dimensions.

W windows · C channels · S seconds · P = 200 samples a second · K codes shown. `python -m evaluation RUN --figure FOLDER
--dataset DATASET` draws them. MNE and scikit-learn draw what they can, and are imported when something is drawn.
"""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce

from dataset.channels import STANDARD_1020
from dataset.recordings import describe_dataset, open_dataset
from dataset.text import load_tokenizer
from dataset.windows import MICROVOLTS, RATE, Windows
from errors import UserError
from evaluation.figures import MODEL, ORIGINAL, new_figure, save
from evaluation.inference import ask, load
from evaluation.reading import batches
from model.hub import read_weights
from model.inputs import BANDS, log_band_power
from model.labram import Classifier
from model.neurolm import NeuroLM
from model.opening import open_model
from model.vq import VQ_Align, zscore
from model.vqnsp import VQNSP
from utils import Run, choose_device

EXAMPLES = 5  # patches drawn of a code
UNLABELLED = 4  # seconds of a window where a dataset has no labels
MOST = 600  # windows that are drawn
TITLES = ("patches, z-scored (s)", "mean spectrum (Hz), all in grey", "use by channel", "use by label")  # of the codes
HIGHEST = 50  # Hz of a spectrum that is drawn


def plot_topographies(values, channels, path, columns, rows=("",), title: str = ""):
    """Maps of the head: values (rows, columns, C), each column on a scale of its own. Channels without a place on the
    head, such as bipolar ones, are left out."""
    import mne

    montage = mne.channels.make_standard_montage("colin27_1005")
    spelled = {name.upper(): name for name in montage.ch_names}
    placed = [i for i, name in enumerate(channels) if name.upper() in spelled]
    info = mne.create_info([spelled[channels[i].upper()] for i in placed], RATE, "eeg").set_montage(montage)
    figure = new_figure(1 + 2.1 * len(columns), 0.7 + 2.2 * len(rows))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, column in enumerate(columns):
        shown = np.asarray(values)[:, place, placed]
        limits = shown.min(), shown.max() + 1e-9
        for axis, row in zip(axes[:, place], shown, strict=True):
            image, _ = mne.viz.plot_topomap(row, info, axes=axis, show=False, cmap="viridis", vlim=limits, contours=3)
        axes[0, place].set_title(column, fontsize=9)
        figure.colorbar(image, ax=list(axes[:, place]), shrink=0.6, location="bottom")
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def band_power(windows) -> np.ndarray:
    """log10 power in uV^2 of each of BANDS, mean over the seconds -> (W, bands, C)."""
    eeg = torch.from_numpy(np.stack([sample["eeg"] for sample in windows])).unflatten(-1, (-1, RATE))  # (W, C, S, P)
    return rearrange(log_band_power(eeg).mean(2) / np.log(10) + 2 * np.log10(MICROVOLTS), "w c b -> w b c").numpy()


@torch.no_grad()
def attention(asked, windows) -> np.ndarray:
    """How much the blocks attend to each channel, over heads, blocks and seconds -> (W, C), 1: an even share.

    asked: of `evaluation.inference.load`. NeuroLM: the attention of the question's last token, which gives the answer,
    among the EEG tokens; LaBraM: what the patches' tokens, whose mean is classified, attend to.
    """
    labram, found = isinstance(asked.model, Classifier), []
    blocks = asked.model.blocks if labram else asked.model.GPT2.transformer.h
    layers = [block.attn.qkv if labram else block.attn.c_attn for block in blocks]
    owners, heads = dict(zip(layers, (block.attn for block in blocks), strict=True)), []

    def keep(layer, given, output):
        attn = owners[layer]
        q, k, _ = rearrange(output.float(), "b n (three h d) -> three b h n d", three=3, h=attn.n_head)
        if labram:
            bias = 0 if attn.q_bias is None else rearrange(attn.q_bias, "(h d) -> h 1 d", h=attn.n_head)
            q, k = attn.q_norm(q + bias), attn.k_norm(k)
        q = q[:, :, 1:] if labram else q[:, :, -1:]
        heads.append((q @ k.mT / q.size(-1) ** 0.5).softmax(-1).mean((1, 2)))  # (B, keys)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        for batch in batches(asked.model, windows, asked.batch_size, asked.run):
            heads.clear()
            if labram:
                asked.model.pool(batch["x"], batch["chans"])
                tokens, order = torch.stack(heads).mean(0)[:, 1:], "b (c s) -> b c"
            else:
                prompt = torch.tensor(asked.questions[0].task.prompt(load_tokenizer()), device=asked.run.device)
                asked.model.read(batch | {"tokens": prompt.expand(len(batch["index"]), -1)})
                tokens, order = torch.stack(heads).mean(0)[:, : batch["chans"].size(1)], "b (s c) -> b c"
            shares = reduce(tokens, order, "sum", c=len(windows[0]["rows"]))
            found.append((shares / shares.mean(1, keepdim=True)).cpu().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(found)


def plot_features(features, labels, subjects, names, path, title: str = ""):
    """t-SNE of features (W, D), coloured by label and by subject: what they tell apart, and whom."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    fit = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0)
    points = fit.fit_transform(StandardScaler().fit_transform(features))
    figure = new_figure(9, 4.4)
    told = [names[label] if label >= 0 else "all" for label in labels]
    for axis, (kind, values) in zip(figure.subplots(1, 2), (("label", told), ("subject", subjects)), strict=True):
        found = sorted(set(values))
        for number, value in enumerate(found):
            style = {"color": f"C{number % 10}", "marker": "ox^s"[number // 10 % 4], "label": value}
            axis.scatter(*points[np.array(values) == value].T, s=8, **style)
        axis.set(xticks=[], yticks=[], title=f"by {kind}")
        if len(found) <= 12:
            axis.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


@torch.no_grad()
def read_codes(tokenizer, windows, run, batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The patches of windows of one montage and the codes of a NeuroLM or LaBraM tokenizer -> (W, C, S, P) in uV,
    (W, C, S)."""
    order = "b (c s) -> b c s" if isinstance(tokenizer, VQNSP) else "b (s c) -> b c s"
    codes = []
    for batch in batches(tokenizer, windows, batch_size, run):
        if isinstance(tokenizer, VQNSP):
            indices = tokenizer.encode(batch["x"], batch["chans"])[1]
        else:
            indices = tokenizer.VQ.tokenize(batch)[0]
        codes.append(rearrange(indices, order, c=len(windows[0]["rows"])).cpu().numpy())
    patches = [MICROVOLTS * rearrange(sample["eeg"], "c (s p) -> c s p", p=RATE) for sample in windows]
    return np.stack(patches), np.concatenate(codes)


def plot_codebook(patches, codes, channels, labels, names, path, most: int = 8):
    """The most used codes: patches that have them, their mean spectrum beside that of all, and how much more often than
    others they are used on each channel and in windows of each label (1: as often).

    patches (W, C, S, P) in uV, codes (W, C, S), labels (W,), -1: none."""
    counts = np.bincount(codes.ravel())
    shown = [code for code in np.argsort(-counts)[:most] if counts[code]]
    flat = zscore(torch.from_numpy(rearrange(patches, "w c s p -> w (c s) p")).float()).numpy()
    flat = rearrange(flat, "w (c s) p -> w c s p", c=len(channels))
    spectrum = np.abs(np.fft.rfft(flat))[..., :HIGHEST]
    figure = new_figure(13, 1 + 1.35 * len(shown))
    axes = figure.subplots(len(shown), 4, squeeze=False, width_ratios=(3, 2, 4, 2))
    for row, code in zip(axes, shown, strict=True):
        mine = codes == code
        some = np.flatnonzero(mine.ravel())[:: max(1, mine.sum() // EXAMPLES)][:EXAMPLES]
        for patch in flat.reshape(-1, RATE)[some]:
            row[0].plot(np.arange(RATE) / RATE, patch, color=ORIGINAL, lw=0.6)
        row[0].set_ylabel(f"{code}\n{mine.mean():.1%}", rotation=0, ha="right", va="center", fontsize=8)
        row[1].plot(spectrum.mean((0, 1, 2)), color=ORIGINAL, lw=0.8)
        row[1].plot(spectrum[mine].mean(0), color=MODEL, lw=1)
        row[2].bar(channels, mine.mean((0, 2)) / mine.mean(), color=MODEL, width=0.8)
        row[2].tick_params(axis="x", rotation=90, labelsize=6)
        for number in sorted(set(labels)):
            name = names[number] if number >= 0 else "all"
            row[3].bar(name, mine[labels == number].mean() / mine.mean(), color=ORIGINAL)
        for axis in row[2:]:
            axis.axhline(1, color=ORIGINAL, ls=":", lw=0.8)
        for axis in row:
            axis.tick_params(labelsize=6)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    return save(figure, path)


def draw_model(path, folder, split: str, out_dir) -> list:
    """Draw what there is to see of a checkpoint on a split of a dataset folder, of windows of one montage, spread
    evenly -> paths."""
    recordings, labels = open_dataset(folder, split), describe_dataset(folder)["labels"]
    windows = Windows.labelled(recordings) if labels else Windows.continuous(recordings, lambda channels: UNLABELLED)
    alike = max(windows.same_shape(), key=len, default=())
    if not len(alike):
        raise UserError(f"{folder}: no window in split {split!r} to draw")
    chosen = alike[np.unique(np.linspace(0, len(alike) - 1, MOST).astype(int))]
    samples, subjects = [windows[i] for i in chosen], np.array(windows.describe()["subject"])[chosen]
    channels = [STANDARD_1020[row] for row in samples[0]["rows"]]
    classes = np.array([sample["label"] for sample in samples])
    names, found = labels or [], sorted(set(classes.tolist()))
    powers, rows = band_power(samples), [names[label] if label >= 0 else "all" for label in found]
    maps, title = [powers[classes == label].mean(0) for label in found], "log10 power, uV^2"
    about = f"{Path(folder).name} ({split}), {len(samples)} windows"
    drawn = [plot_topographies(maps, channels, out_dir / "topographies.png", list(BANDS), rows, f"{about}: {title}")]
    model = open_model(read_weights(path), str(path))
    if isinstance(model, VQ_Align | VQNSP):
        run = Run(0, 1, choose_device("auto"), torch.float32, seed=0)
        patches, codes = read_codes(model.to(run.device), samples, run)
        return [*drawn, plot_codebook(patches, codes, channels, classes, names, out_dir / "codebook.png")]
    if isinstance(model, Classifier | NeuroLM) and (asked := load(path)).questions:
        shares = attention(asked, samples)
        maps = [[shares[classes == label].mean(0)] for label in found]
        drawn.append(plot_topographies(maps, channels, out_dir / "attention.png", ["attention, 1: even"], rows, about))
        features = ask(asked.model, asked.questions[0].task, samples, asked.batch_size, asked.run)[1]
        drawn.append(plot_features(features, classes, subjects, names, out_dir / "features.png", f"{about}: t-SNE"))
    return drawn
