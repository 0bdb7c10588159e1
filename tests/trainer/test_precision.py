"""Half precision and activation checkpointing: attacks run as the training does, and keep their promises in float32."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from helpers.toy import NORMALISATION, curve, robust, vit

from robust_trainer import METHODS
from robust_trainer.data.images import InputSpace
from robust_trainer.perturbations.inputs import PixelAdapter
from robust_trainer.perturbations.norms import find_norm
from robust_trainer.perturbations.pgd import Perturbation
from robust_trainer.problems import SINGLE_LABEL
from robust_trainer.step.inner import InnerMaximization
from robust_trainer.step.records import MicroBatch
from robust_trainer.step.set_up import make_run
from robust_trainer.types import ForwardOutput

NORMS = {"linf": 8 / 255, "l2": 0.3, "l1": 2.0}
SPACE = InputSpace(tuple(NORMALISATION["image_mean"]), tuple(NORMALISATION["image_std"]))


def rows():
    """Rows with an attack in each norm, TRADES and NRAT with AWP, and per-sample gradients; each with its balls' radii."""
    for norm, eps in NORMS.items():
        for row in ("prl-at", "trades", "nrat-awp"):
            start = {} if row == "prl-at" else {"start_std": "uniform", "steps": 2}
            given = dict(norm=norm, eps=eps, step_size=eps / 2, scope="sample", **start)
            yield pytest.param(row, given, {norm: eps}, id=f"{row}-{norm}")
    hybrid = dict(norm="hybrid", eps=0.03, eps_l2=0.3, steps=2, start_std="uniform")
    yield pytest.param("trades", hybrid, {"linf": 0.03, "l2": 0.3}, id="trades-hybrid")
    both = dict(norm="both", eps=0.03, eps_l2=0.3, steps=2)
    yield pytest.param("erat", both, {"linf": 0.03, "l2": 0.3}, id="erat-both")
    yield pytest.param("prl-at", dict(eps=0.05), {"linf": 0.05}, id="prl-at-shared")
    yield pytest.param("prl-g", dict(), {}, id="prl-g")
    yield pytest.param("prl", dict(), {}, id="prl")


def inside(delta, norm, eps):
    """Whose perturbation, in pixels, is in the ball, up to the rounding of float32 of each entry."""
    rounding = {"linf": 1.0, "l2": delta[0].numel() ** 0.5, "l1": delta[0].numel()}[norm] * 2.0**-23
    return find_norm(norm).size(delta).flatten() <= eps + rounding


class Spy:
    """What the inner maximisation is given and finds, and what the rule ranks by, while a trainer trains."""

    def __init__(self, monkeypatch, trainer):
        self.pairs, self.kinds, self.scores = [], [], []
        perturb, gradient, trained = InnerMaximization.perturb, InnerMaximization._gradient, trainer._set_up

        def found(inner, bare, batches, progress, labelled=None):
            results = perturb(inner, bare, batches, progress, labelled)
            self.pairs += [(b.inputs["pixel_values"], r.adversarial) for b, r in zip(batches, results)]
            return results

        def differentiated(inner, *args):
            grad, output = gradient(inner, *args)
            self.kinds.append((grad.dtype, output.logits.dtype))
            return grad, output

        def set_up(bare):
            step = trained(bare)
            record = step.recorder.record
            step.recorder.record = lambda output, scores, *rest: (self.scores.append(scores.dtype), record(output, scores, *rest))
            return step

        monkeypatch.setattr(InnerMaximization, "perturb", found)
        monkeypatch.setattr(InnerMaximization, "_gradient", differentiated)
        monkeypatch.setattr(trainer, "_set_up", set_up)


def products(model):
    """The types in which the model's convolutions and linear layers gave their results, as it runs."""
    kinds = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    return kinds


@pytest.mark.parametrize("row, given, balls", rows())
def test_bf16(tmp_path, monkeypatch, row, given, balls):
    """The attack sees bfloat16 products as the training does; its steps, scores and losses are float32, x_adv is within eps."""
    shared = dict(method=row, optim="sgd", max_steps=4, **given)
    exact = robust(tmp_path, **shared)
    exact.train()
    trainer = robust(tmp_path, bf16=True, **shared)
    spy, kinds = Spy(monkeypatch, trainer), products(trainer.model)
    trainer.train()
    assert kinds == {torch.bfloat16} and set(spy.scores) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    for (loss, _), (other, _) in zip(curve(trainer), curve(exact), strict=True):
        assert loss == pytest.approx(other, rel=0.03)
    assert set(spy.kinds) == ({(torch.float32, torch.float32)} if balls else set()) and len(spy.pairs) == (4 if balls else 0)
    for x, adversarial in spy.pairs:
        deltas = [0.5 * (moved - x) for moved in adversarial.chunk(len(adversarial) // len(x))]
        assert adversarial.dtype == torch.float32 and all((delta != 0).any() for delta in deltas)
        if given.get("norm") == "both":
            assert all(inside(delta, norm, balls[norm]).all() for delta, norm in zip(deltas, balls, strict=True))
        else:
            assert torch.stack([inside(deltas[0], norm, eps) for norm, eps in balls.items()]).any(0).all()
        pixels = SPACE.to_pixels(adversarial)
        assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6


# ---- float16: what its range loses ---------------------------------------------------------------------------------------


def confident(gap):
    """A linear model whose two logits of the image are ``gap`` apart."""
    model = torch.nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.ones(12), -torch.ones(12)]) * gap / 24)
    return model


def input_gradient(gap, scale):
    """The gradient of one confidently right sample's loss, as the attack takes it in float16."""
    model, x = confident(gap), torch.ones(1, 12).view(1, 3, 2, 2)
    attack = Perturbation(eps=0.03, inner_loss="ce", scope="sample")
    recipe = METHODS["pgd-at"]()
    adapter = PixelAdapter("pixel_values", SPACE)

    def forward(inputs):
        with torch.autocast("cpu", dtype=torch.float16):
            return model(inputs["pixel_values"].flatten(1)).float()

    batch = MicroBatch({"pixel_values": x}, torch.zeros(1, dtype=torch.long), None)
    read = lambda out, b: ForwardOutput(out.unsqueeze(0), b.targets, None)  # noqa: E731
    inner = InnerMaximization(recipe, attack, adapter, SINGLE_LABEL, read, None, None, gradient_scale=scale)
    return inner._gradient(forward, batch, x, None, None)[0]


def test_float16_gradients_are_scaled_lest_they_vanish():
    """At a gap of 18 the loss's gradient in the logits, 2e-8, times the weights is nothing in float16; scaled, it has its sign."""
    assert input_gradient(18.0, 1.0).count_nonzero() == 0
    scaled = input_gradient(18.0, 2.0**8)
    assert (scaled < 0).all()
    assert input_gradient(30.0, 2.0**8).count_nonzero() == 0  # past the range: such a sample stays where it is
    assert make_run_scale("fp16") == 2.0**8 and make_run_scale("bf16") == make_run_scale("no") == 1.0


def make_run_scale(precision):
    accelerator = SimpleNamespace(num_processes=1, process_index=0, mixed_precision=precision)
    args = SimpleNamespace(device=torch.device("cpu"), seed=0, num_train_epochs=1, max_steps=-1)
    args.per_device_train_batch_size = args.train_batch_size = args.gradient_accumulation_steps = args.world_size = 1
    trainer = SimpleNamespace(accelerator=accelerator, args=args)
    return make_run(trainer, METHODS["pgd-at"](), SINGLE_LABEL, 2, None).gradient_scale


# ---- activation checkpointing --------------------------------------------------------------------------------------------


def ends(tmp_path, row, **checkpointing):
    """The weights after four steps of a small ViT."""
    steps = {"steps": 2} if METHODS[row].settings.get("steps", 1) > 1 else {}
    given = {"attack_mode": checkpointing.pop("attack_mode")} if "attack_mode" in checkpointing else {}
    trainer = robust(tmp_path, vit(), method=row, optim="sgd", max_steps=4, **steps, **given, **checkpointing)
    trainer.train()
    return trainer.model.state_dict()


@pytest.mark.parametrize("row", ["prl", "prl-at", "trades", "nrat-awp", "co-prl"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_activation_checkpointing_changes_nothing(tmp_path, row, reentrant):
    on = dict(activation_checkpointing=True)
    on |= {} if reentrant is None else dict(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant and row == "nrat-awp":
        with pytest.raises(ValueError, match="'nrat-awp' perturbs weights by torch.autograd.grad, .*'use_reentrant': False}"):
            ends(tmp_path, row, **on)
        return
    ignored = pytest.warns(UserWarning, match="None of the inputs have requires_grad") if reentrant else contextlib.nullcontext()
    with ignored:
        other = ends(tmp_path, row, **on)
    one = ends(tmp_path, row)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("reentrant", [None, True])
def test_an_attack_in_training_mode(tmp_path, reentrant):
    on = dict(activation_checkpointing=True, attack_mode="train")
    if reentrant:
        with pytest.raises(ValueError, match="attacks in training mode .* re-entrant"):
            ends(tmp_path, "prl-at", **on, activation_checkpointing_kwargs={"use_reentrant": True})
        return
    one, other = ends(tmp_path, "prl-at", attack_mode="train"), ends(tmp_path, "prl-at", **on)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_keeps_as_little_as_a_training_step(tmp_path, monkeypatch, mode):
    """Numbers that autograd keeps for the attack's backward; in evaluation mode transformers would checkpoint nothing."""
    kept, gradient = [], InnerMaximization._gradient

    def counted(*args):
        kept.append(0)

        def pack(x):
            kept[-1] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            return gradient(*args)

    monkeypatch.setattr(InnerMaximization, "_gradient", counted)
    for on in (False, True):
        trainer = robust(
            tmp_path, vit(dropout=0.1), method="prl-at", max_steps=1, activation_checkpointing=on, attack_mode=mode, optim="sgd"
        )
        layers = trainer.model.vit.layers
        trainer.train()
        assert all(layer.training and layer.gradient_checkpointing is on for layer in layers)
        assert not on or all(layer._gradient_checkpointing_func.keywords == {"use_reentrant": False} for layer in layers)
    assert kept[1] < 0.5 * kept[0], kept


def test_a_model_that_checkpoints_by_itself(tmp_path):
    model = vit()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="'nrat-awp' perturbs weights"):
        robust(tmp_path, model, method="nrat-awp", steps=2, max_steps=1).train()
