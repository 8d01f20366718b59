"""The same global batches give the same codebook however they are cut: into processes, and into micro-batches."""

import pytest
import stages
import torch
import torch.distributed as dist
from processes import run_processes
from torch.testing import assert_close

import run_vqnsp_training
import train_vq
from model.quantizer import Quantizer
from model.weights import read_checkpoint

CUTS = {"1x8": (1, 8, 1), "1x4x2": (1, 4, 2), "2x4": (2, 4, 1), "4x2": (4, 2, 1)}  # processes, batch, accumulated
STATE = ("embedding.weight", "embedding.cluster_size", "embedding.initted", "cluster_size")
LABRAM = ["--model", "vqnsp_encoder_tiny_decoder_1x100x2", "--codebook_n_emd", 64, "--codebook_emd_dim", 16]


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learn(cuts, revive_after):
    """The codebook after four steps of the same 24 rows, of which `cuts` are micro-batches."""
    torch.manual_seed(0)
    model = Quantizer(40, 6, decay=0.9).train()
    model.revive_after, model.hold = revive_after, True
    codes = []
    for step in range(4):
        z, valid = vectors(24, 5, 6, seed=step), vectors(24, 5, seed=100 + step) > -1
        torch.manual_seed(7)
        parts = list(zip(z.split(cuts), valid.split(cuts), strict=True))
        model.place_codes(parts)
        passes = [model(*part) for part in parts]
        assert step or not model.cluster_size.any()  # nothing moves before the step ends
        model.end_step()
        codes.append(torch.cat([indices[real] for (_, indices, _), (_, real) in zip(passes, parts, strict=True)]))
    return model.state_dict(), torch.cat(codes)


@pytest.mark.parametrize("revive_after", [0, 1])
@pytest.mark.parametrize("cuts", [[12, 12], [8, 8, 8], [1, 3, 20]])
def test_micro_batches_are_one_step(cuts, revive_after):
    state, codes = learn(cuts, revive_after)
    whole, expected = learn([24], revive_after)
    assert torch.equal(codes, expected)
    assert_close(state, whole, rtol=1e-5, atol=1e-6)
    assert not torch.equal(whole["embedding.weight"], learn([24], 1 - revive_after)[0]["embedding.weight"])


def test_a_checkpoint_holds_no_part_of_a_step():
    model = Quantizer(8, 4)
    assert set(model.state_dict()) == {*STATE, "embedding.embed_avg"}
    model.train()(vectors(3, 4))
    assert not model.count.any() and not model.total.any()  # without `hold` every pass is a step


def train(script, flags):
    """Train, watching that the codebook is the same on every rank after each of the three steps."""
    end_step, steps = Quantizer.end_step, []

    def end_and_compare(quantizer):
        end_step(quantizer)
        steps.append(quantizer.embedding.weight.clone())
        if dist.is_initialized():
            first = steps[-1].clone()
            dist.broadcast(first, 0)
            assert torch.equal(steps[-1], first), "the codebooks of the ranks differ"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantizer, "end_step", end_and_compare)
        script.main(script.get_args(flags))
    assert len(steps) == 3 and not torch.equal(steps[0], steps[2])


def neurolm(corpus, folder, *sizes):
    flags = stages.flags("vq", corpus, folder, "--text_batch_size", 0, "--warmup_epochs", 0, *sizes)
    return train_vq, flags, folder / "checkpoints" / "VQ" / "ckpt.pt", "VQ.quantize."


def labram(corpus, folder, *sizes):
    flags = ["--dataset_dir", corpus / "data", "--output_dir", folder, "--device", "cpu", "--num_workers", 0, *LABRAM]
    flags += ["--quantize_kmeans_init", "--warmup_epochs", 0, *sizes]
    return run_vqnsp_training, [*map(str, flags)], folder / "checkpoint.pth", "quantize."


@pytest.mark.parametrize("tokenizer", [neurolm, labram])
def test_the_same_global_batch_gives_the_same_codebook(tokenizer, untrained, tmp_path):
    found = {}
    for name, (processes, batch, accumulated) in CUTS.items():
        sizes = ["--batch_size", batch, "--gradient_accumulation_steps", accumulated]
        script, flags, checkpoint, prefix = tokenizer(
            untrained, tmp_path / name, *sizes, "--max_steps", 3, "--epochs", 2, "--revive_dead_codes", 2
        )
        run_processes(processes, train, script, flags)
        state = read_checkpoint(checkpoint)["model"]
        found[name] = {key: state[prefix + key] for key in STATE}
    for name, state in found.items():
        assert_close(state, found["1x8"], rtol=1e-4, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")
