"""In no step of any method the host waits for the accelerator where it does not in the plain Trainer's, but for what is named here.

A step is everything from the end of the one before it. An epoch's first step, with what is decided or looked at between epochs, and
logs are left out: there the host may look.
"""

import importlib
from pathlib import Path

import pytest
import torch
from helpers.pretend_device import DEVICE, PretendDevice
from transformers import Trainer, TrainerCallback, TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.ledger import pending
from robust_trainer.methods.settings import FIELDS, SETTINGS

#: A batch's tensors travel one after the other; with a robust method there is one more, the samples' positions.
TRAVEL = ("copy to the device", "Trainer.get_batch_samples")
#: What is left, in a row's steps: (operation, function). The first batch of every size is compared with plain autograd, once; BERT
#: looks in every forward whether its attention mask has zeros.
_ONCE = {("_local_scalar_dense", "Tape.compare"), ("_local_scalar_dense", "SampleGradients._run")}
LEFT = {
    "prl-g": _ONCE,
    "ignormclip": _ONCE,
    "pgd-at/text": {("_local_scalar_dense", "RobustTrainerMixin.compute_loss.<locals>.<lambda>")},
}
#: Other settings of rows, whose steps go other ways.
WAYS = {
    "prl/scan": dict(), "prl/auto": dict(), "prl/batch": dict(), "prl/stream": dict(max_steps=8), "min-sgd/groups": dict(),
    "trades/l1": dict(), "trades/hybrid": dict(), "erat/both": dict(),
    "pgd-at/text": dict(), "co-prl/three": dict(), "prl": dict(gradient_accumulation_steps=2),
    "nrat-awp": dict(gradient_accumulation_steps=2), "prl-at": dict(class_floor=2, max_grad_norm=0.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def equality():
    """The networks, data and settings of ``benchmarks/process_equality.py``, with which every part of a row is at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("process_equality")


class Watch(TrainerCallback):
    """Takes the waits of each step but an epoch's first."""

    def __init__(self, device):
        self.device, self.steps, self.first = device, [], True

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.first = True

    def on_step_end(self, args, state, control, **kwargs):
        waits = self.device.take()
        self.steps += [] if self.first else [waits]
        self.first = False


def arguments(equality, name, folder, more):
    """The arguments of a row, ``plain`` for the Trainer's own."""
    row, _, variant = name.partition("/")
    common = dict(
        output_dir=str(folder), per_device_train_batch_size=8 // more.get("gradient_accumulation_steps", 1), num_train_epochs=2,
        learning_rate=0.05, optim="sgd", report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    if row == "plain":
        return TrainingArguments(**{**common, **more})
    given = {**equality.settings_of(name), **more}
    given |= {"steps": 2} if given.get("steps", 1) > 2 else {}
    rest = {key: given.pop(key) for key in [*given] if key in SETTINGS and key not in FIELDS}
    means = {} if variant == "text" else dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return RobustConfig(**{**common, **means, **given}, method=row, method_settings=rest or None)


def trained(equality, name, folder, watch=None, **more):
    """A trainer after two epochs of four steps, the last one short."""
    row, _, variant = name.partition("/")
    text = variant == "text"
    model = equality.network("prl-simclr" if row == "plain" else row, text)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # the fused ones are chosen by the device
    data = equality.sentences(30) if text else equality.samples(30, torch.float32)
    data = equality.Stream(data) if variant == "stream" else data
    kind, args = Trainer if row == "plain" else RobustTrainer, arguments(equality, name, folder, more)
    trainer = kind(model, args, equality.padded if text else None, train_dataset=data, callbacks=[watch] if watch else [])
    trainer.train()
    return trainer


def waits_of_steps(equality, name, folder, **more):
    with PretendDevice() as device:
        watch = Watch(device)
        trainer = trained(equality, name, folder, watch, **more)
        assert all(p.device == DEVICE for p in trainer.model.parameters()) and len(watch.steps) >= 6
    return watch.steps


@pytest.fixture(scope="module")
def plain(equality, tmp_path_factory):
    """The most waits of a step of the plain Trainer."""
    steps = waits_of_steps(equality, "plain", tmp_path_factory.mktemp("plain"))
    return {kind: max(step[kind] for step in steps) for kind in set().union(*steps)}


def added(steps, plain, batches=1):
    """The waits that no step of the plain Trainer has."""
    usual = {**plain, TRAVEL: batches * (plain[TRAVEL] + 1)}
    return {kind for step in steps for kind, count in step.items() if count > usual.get(kind, 0)}


#: Rows that share every part with another one, or differ from it in the loss on labels alone.
_LIKE = {"mae", "gce", "sce", "nce", "rce", "bootstrap-soft", "co-spl", "co-teaching", "trim", "spl-at", "bootstrap-at"}
_LIKE |= {"prl-simclr-sn", "mart-awp", "trades-awp", "fast-at-awp", *(row for row in METHODS if "-apl" in row)}


@pytest.mark.parametrize("name", [pytest.param(row, marks=pytest.mark.slow if row in _LIKE else ()) for row in METHODS])
def test_a_step_waits_where_the_plain_one_does(equality, plain, tmp_path, monkeypatch, name):
    monkeypatch.setattr(pending, "STEPS", 2)  # records are written within these few steps
    assert added(waits_of_steps(equality, name, tmp_path), plain) == LEFT.get(name, set())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "erat" in name else ()) for name in WAYS])
def test_so_it_is_with_other_settings(equality, plain, tmp_path, monkeypatch, name):
    monkeypatch.setattr(pending, "STEPS", 2)
    batches = WAYS[name].get("gradient_accumulation_steps", 1)
    usual = {kind: count * batches for kind, count in plain.items() if kind != TRAVEL} | {TRAVEL: plain[TRAVEL]}
    usual[TRAVEL] += "text" in name  # the attention mask
    assert added(waits_of_steps(equality, name, tmp_path, **WAYS[name]), usual, batches) == LEFT.get(name, set())


# ---- the pretended device ----------------------------------------------------------------------------------------------


def test_a_training_on_the_pretended_device_is_that_of_the_cpu(equality, tmp_path):
    with PretendDevice():
        one = trained(equality, "prl-at", tmp_path).model.state_dict()
        one = {name: value.cpu() for name, value in one.items()}
    other = trained(equality, "prl-at", tmp_path, use_cpu=True).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "float": lambda x: float(x[0, 0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.cpu().numpy(),
    "mask": lambda x: x[x > 0],
    "rows": lambda x: x[(x > 0).any(1)],
    "numbers": lambda x: x[torch.tensor([0, 1])],
    "list": lambda x: x[[1, 0]],
    "assigned": lambda x: x.clone().__setitem__((x > 0).any(1), x[:1]),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "selected": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "counts": lambda x: torch.bincount(x[0].long()),
    "equal": lambda x: torch.equal(x, x + 1),
    "made": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "brought": lambda x: torch.ones(2).to(x.device),
    "copied": lambda x: x[0].clone().copy_(torch.ones(3)),
}


@pytest.mark.parametrize("kind", WAITS)
def test_a_wait_is_noted(kind):
    with PretendDevice() as device:
        x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).to(DEVICE)
        device.take()
        WAITS[kind](x)
        assert device.take().total() >= 1


def test_what_does_not_wait_is_not_noted():
    with PretendDevice() as device:
        x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).to(DEVICE)
        device.take()
        y = torch.zeros(3, device=x.device) + torch.arange(3, device=x.device) * 2.0 + torch.full_like(x[0], 3.0)
        y = torch.where(x > 0, x, y).masked_fill(x > 1, 0.0)
        y[x > 0] = 0.0  # one number for a mask is a masked fill
        y = y.sort().values.topk(2).values.gather(1, torch.zeros(2, 1, dtype=torch.long, device=x.device))
        torch.nn.functional.one_hot(torch.arange(3, device=x.device), 3)
        torch.ones(2).to(x.device, non_blocking=True)
        y.add_(torch.tensor(1.0))  # a number of the host is an argument of the kernel
        assert device.take() == {}
        with pytest.raises(RuntimeError, match="of the host and of the device"):
            x + torch.ones(3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu_torch_says_the_same(equality, tmp_path, monkeypatch, name):
    """From the second step on of an epoch, within the training step."""
    training_step = RobustTrainer.training_step

    def step(self, *args, **kwargs):
        strict = self.state.global_step % 4 > 0 and name not in LEFT
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            return training_step(self, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(RobustTrainer, "training_step", step)
    trained(equality, name, tmp_path)
