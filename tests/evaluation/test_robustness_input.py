"""What evaluate_robustness takes: any model and precision; what it warns of; what it refuses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import accelerate
import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.robustness_toy import PIXELS, TOY, Bit, Flip, Linear, bits, fitted
from helpers.tables import every_row
from helpers.toy import CLASSES, NORMALISATION, images, logits_module, resnet, vit
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from robust_trainer.attacks.autoattack import make_attack, read_eps
from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.preflight import after
from robust_trainer.attacks.target import Target
from robust_trainer.evaluation.robustness import Robustness, evaluate_robustness, show_eps
from robust_trainer.methods.units import fraction
from robust_trainer.models.peers import PeerModel


def test_low_precision_is_attacked_with_float32_gradients():
    model, data = fitted(logits_module()), images(40, noisy=0.0)
    x, y = data[:]["pixel_values"] * 0.5 + 0.5, data[:]["labels"]
    low = fitted(logits_module()).to(torch.bfloat16)
    names = ["pgd-10", "apgd-ce"]
    exact, found = (evaluate_robustness(m, data, names, 0.055, **TOY) for m in (model, low))
    assert 0 < exact.worst_case < 1 and found.worst_case <= exact.worst_case + 2 / 40
    assert next(low.parameters()).dtype == torch.bfloat16
    with Target(low, **NORMALISATION) as target:
        adversarial = make_attack("apgd-ce", 0.055)
        x_adv = adversarial(target, x, y, Draws(0, range(40)))
        leaf = x_adv.requires_grad_()
        logits = target(leaf)
        assert logits.dtype == torch.float32 and torch.equal(logits.argmax(1), target.judge(x_adv).argmax(1))
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), leaf)
        assert grad.dtype == torch.float32 and not grad.flatten(1).eq(0).all(1).any()
    with Target(model, **NORMALISATION) as target:
        leaf32 = x_adv.detach().requires_grad_()
        (grad32,) = torch.autograd.grad(nn.functional.cross_entropy(target(leaf32), y), leaf32)
    assert nn.functional.cosine_similarity(grad.flatten(), grad32.flatten(), 0) > 0.999


def test_accelerates_autocast_is_off_for_gradients_and_on_for_judging():
    plain, data = fitted(logits_module()), images(12)
    x, y = data[:]["pixel_values"] * 0.5 + 0.5, data[:]["labels"]
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left one
    try:
        wrapped = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(fitted(logits_module()))
        grads, judged = [], []
        for model in (plain, wrapped):
            with Target(model, **NORMALISATION) as target:
                leaf = x.clone().requires_grad_()
                logits = target(leaf)
                grads.append(torch.autograd.grad(logits.gather(1, y[:, None]).sum(), leaf)[0])
                judged.append(target.judge(x))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(grads[0], grads[1]) and not torch.equal(judged[0], judged[1])


def test_any_model_without_a_wrapper():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = logits_module()

        def forward(self, images):
            return self.inner(images), images

    processor = SimpleNamespace(do_normalize=True, do_rescale=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pairs = [(row["pixel_values"], int(row["labels"])) for row in images(6)]
    for model in (vit(), resnet(), Pair(), PeerModel.of([logits_module(), logits_module()]), logits_module().double()):
        found = evaluate_robustness(model, images(6), "pgd-1", processing_class=processor, progress=False)
        again = evaluate_robustness(model, pairs, ["pgd-1"], "8/255", **TOY)
        assert isinstance(found, Robustness) and found.eps == 8 / 255 and found.accuracies == again.accuracies
    peers = PeerModel.of([vit(), vit()])
    with torch.autocast("cpu", dtype=torch.bfloat16), Target(logits_module(), **NORMALISATION) as target:
        x = torch.rand(64, 3, 8, 8)
        assert torch.equal(target(x).argmax(1), target.judge(x).argmax(1)) and not torch.equal(target(x), target.judge(x))
    with Target(peers, **NORMALISATION) as target:
        x = images(6)[:]["pixel_values"]
        mean = (peers.peers[0](x).logits + peers.peers[1](x).logits) / 2
        assert torch.allclose(target(x * 0.5 + 0.5), mean, atol=1e-5)


class Softmax(Linear):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Rounded(Linear):
    def forward(self, x):
        return super().forward((x * 20).round() / 20)


class Noisy(Linear):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.rand_like(x))


def test_warnings_come_before_the_attacks(caplog):
    class Stops(Flip):
        def __call__(self, forward, x, y, draws):
            raise KeyboardInterrupt

    x = torch.rand(4, 3, 3, 3)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        evaluate_robustness(Softmax(4, 27), list(zip(x, [0, 1, 2, 3])), Stops("stops"), 0.3, **PIXELS)
    assert "probabilities" in caplog.text


@every_row("kind, page", [(Softmax, "probabilities"), (Rounded, "zero-gradients"), (Noisy, "randomised-output"), (Linear, "")])
def test_warnings_before(kind, page, caplog):
    x = torch.rand(12, 3, 3, 3)
    model = kind(4, 27)
    data = list(zip(x, model(x).argmax(1).tolist()))
    with caplog.at_level(logging.WARNING):
        found = evaluate_robustness(model, data, ["pgd-2"], 0.02, **PIXELS)
    assert len(found.warnings) == bool(page) and found.warnings == [r.message for r in caplog.records]
    assert found.table().count("\nwarning: ") == bool(page) and all(told in found.table() for told in found.warnings)
    docs = (Path(__file__).parents[2] / "docs/guides/robustness.md").read_text()
    for told in found.warnings:
        assert f"docs/guides/robustness.md#{page})" in told and f"\n### {page.replace('-', ' ').capitalize()}\n" in docs


def test_square_tells_masked_gradients():
    x = torch.rand(12, 3, 6, 6)
    model = Rounded(4, 108)
    data = list(zip(x, model(x).argmax(1).tolist()))
    found = evaluate_robustness(model, data, ["pgd-2", "square"], 0.1, **PIXELS)
    assert found.accuracies["pgd-2"] > found.accuracies["square"]
    assert any("square, which sees no gradient" in told and "#masked-gradients" in told for told in found.warnings)
    two, one = np.array([True, True, False]), np.array([True, False, False])
    assert "one step" in after({"fgsm": two, "pgd-20": one}, two)[0] and not after({"fgsm": one, "pgd-20": two}, two)


@dataclass
class Far(Flip):
    def __call__(self, forward, x, y, draws):
        return (x + 2 * self.eps).clamp(0, 1)


def token_model():
    return BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )


def bad_bits(**columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({**bits(4).with_format(None)[:], **columns}).with_format("torch")


BAD = [
    (dict(eps="8"), r"did you mean 8/255\?"), (dict(eps="0"), "must be positive"), (dict(eps=-0.1), "must be positive"),
    (dict(eps=float("nan")), "no finite number"), (dict(eps="eight"), "no finite number"), (dict(eps="8/0"), "no finite number"),
    (dict(norm="l3"), "norm='l3' is unknown"), (dict(norm="l2", eps=None), "norm='l2' needs eps"),
    (dict(attacks=["pdg-20"]), "did you mean 'pgd-20'"), (dict(attacks=["autoatack"]), "did you mean 'autoattack'"),
    (dict(attacks=["pgd"]), "did you mean 'pgd-20'"), (dict(attacks=["pgd-0"]), "has 0 steps"),
    (dict(batch_size="64"), "batch_size='64' must be a whole number"), (dict(model="resnet"), "model is str, expected"),
    (dict(max_samples=2.5), "max_samples=2.5 must be"), (dict(dataset=iter([])), "without a length"),
    (dict(label_names="target"), r"one of \['target'\]"), (dict(attacks=["cw-t"]), "did you mean 'cw-20-t'"),
    (dict(attacks=["pgd-20-targeted"]), "did you mean 'pgd-20-t'"),
    (dict(attacks=["pgd-0-t"]), "has 0 steps"),
    (dict(attacks=["pgd-5x0"]), "has 0 restarts"), (dict(attacks=["fgsmx3"]), "takes no restarts"),
    (dict(attacks=["nonsense"]), "choose from fgsm, pgd-K"), (dict(attacks=[]), "attacks is empty"), (dict(attacks=[3]), "neither"),
    (dict(attacks=["pgd-1", "pgd-1"]), "given twice"), (dict(attacks=["apgd-t"]), "apgd-t needs at least 4 classes"),
    (dict(attacks=[Flip("flip", eps=0.2)]), "has eps=0.2 in linf"), (dict(attacks=[Far("far", eps=0.1)], eps=0.1), "project them"),
    (dict(batch_size=0), "batch_size=0"), (dict(max_samples=0), "max_samples=0"), (dict(dataset=[]), "has 0 samples"),
    (dict(image_mean=None, image_std=None), "normalisation of the images is unknown"), (dict(image_std=None), "belong together"),
    (dict(image_mean=[0.5], image_std=[0.9]), r"expected \[0, 1\] pixels"),
    (dict(dataset=bad_bits(labels=[0, 1, 2, 0])), "labels reach 2"),
    (dict(dataset=bad_bits(labels=[0, -1, 1, 0])), "'labels' is -1 in row 1"),
    (dict(dataset=bad_bits(labels=[0.5, 1, 1, 0])), "expected integer class labels"),
    (dict(dataset=bits(4).remove_columns("labels")), "no labels"),
    (dict(dataset=bits(4).rename_column("pixel_values", "values")), "no 'pixel_values' in the batch"),
    (dict(dataset=bad_bits(pixel_values=[[1, 2, 3]] * 4)), "token ids"),
    (dict(dataset=bad_bits(pixel_values=[[[[1, 2]]]] * 4)), "let the image processor rescale"),
    (dict(dataset=bad_bits(pixel_values=[[0.5, 0.5]] * 4)), "expected images"), (dict(model=token_model()), "takes token ids"),
    (dict(model=nn.Sequential(nn.Flatten(), nn.Linear(4, 1))), "at least 2 classes"),
    (dict(model=nn.Identity()), "expected (1, K)"),
]  # fmt: skip


@every_row("kwargs, told", BAD)
def test_bad_input_is_told_in_one_line(kwargs, told):
    given = dict(model=Bit(), dataset=bits(4), attacks=["pgd-1"], eps=0.3) | PIXELS | kwargs
    with pytest.raises(ValueError, match=told.replace("(1, K)", r"\(1, K\)")) as error:
        evaluate_robustness(**given)
    assert "\n" not in str(error.value)


def test_numbers_as_people_write_them():
    assert fraction("eps", "8/255") == 8 / 255 and fraction("eps", " 0.03 ") == 0.03 and fraction("eps", 1e-2) == 0.01
    assert fraction("step_size", "-1/2") == -0.5 and fraction("eps", np.float32(0.5)) == 0.5 and fraction("eps", 2) == 2.0
    for wrong in ("", "1/2/3", "8 /", None, True, [1], "inf", float("inf"), "1/0"):
        with pytest.raises(ValueError, match="eps=.* is no finite number: give for instance 8/255 or 0.03."):
            fraction("eps", wrong)
    assert read_eps("128/255", "l2") == 128 / 255 and read_eps(3, "l2") == 3.0 and read_eps(1) == 1.0
    assert (show_eps(8 / 255), show_eps(0.03), show_eps(3.0)) == ("8/255", "0.03", "3")
    assert CLASSES == 4
