"""Bad input: what a script says of it."""

import re

import pytest
import stages

import errors
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from training.checkpoints import write_checkpoint


def write_untrained(folder):
    """Datasets, text and checkpoints that nobody trained: every flag of `stages` finds what it names."""
    corpus = stages.write_corpus(folder)
    tokenizer = VQ_Align.from_size("tiny")
    model = NeuroLM.from_size("tiny", tokenizer.VQ.encoder.config, tokenizer.VQ.quantize.n_codes)
    for stage, made in (("vq", tokenizer), ("pretrain", model)):
        checkpoint = {"model": made.state_dict(), **made.config_args()}
        write_checkpoint(checkpoint, stages.reference(corpus, stage) / "ckpt.pt")
    return corpus


def assert_refused(capsys, script, argv, words) -> None:
    """The script ends with status 2, without a traceback, and one line of error says all of `words`."""
    with pytest.raises(SystemExit) as stop:
        errors.run(script.main, lambda: script.get_args(argv))
    said = capsys.readouterr().err
    (line,) = re.findall("error: .*", said)
    assert stop.value.code == 2 and "Traceback" not in said
    for word in words:
        assert str(word) in line, line
