"""NaN and infinity never reach the weights: the sample or the step is left out, counted and said, or the run stops."""

import math

import pytest
import torch
from helpers.tables import every_row
from helpers.toy import Logits, curve, images, robust
from torch import nn

NAN, INF = float("nan"), float("inf")
ROW = 3


class Hot(Logits):
    """White images are the fault: in the logits, in the hidden layer, or in the gradient alone."""

    def __init__(self, where="logits", value=NAN, norm=False):
        torch.manual_seed(0)
        super().__init__()
        self.where, self.value, self.norm = where, value, nn.BatchNorm2d(3) if norm else nn.Identity()

    def forward(self, pixel_values):
        hot = pixel_values.flatten(1).amin(1) > 0.9
        if self.where == "hidden":
            pixel_values = torch.where(hot.view(-1, 1, 1, 1), torch.full_like(pixel_values, self.value), pixel_values)
        hidden = nn.functional.adaptive_avg_pool2d(self.conv(self.norm(pixel_values)).relu(), 2).flatten(1)
        logits = self.head(hidden)
        if self.where == "gradient":  # the square root of 0 is 0, its slope is infinite
            size = torch.where(hot, hidden.sum(1) * 0.0, hidden.sum(1).abs() + 1.0)
            logits = logits + 0.0 * size.sqrt().unsqueeze(1)
        return logits.masked_fill(hot.unsqueeze(1), self.value) if self.where == "logits" else logits


def rows(n=32, hot=(ROW,)):
    data = [dict(r) for r in images(n).select_columns(["pixel_values", "labels"])]
    for row in hot:
        data[row]["pixel_values"] = torch.ones(3, 8, 8)
    return data


def trained(tmp_path, model, data=None, **more):
    trainer = robust(tmp_path, model, rows() if data is None else data, **{"num_train_epochs": 1, "eps": None, **more})
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    return trainer


def logged(trainer, name):
    return sum(r.get(name, 0.0) for r in trainer.state.log_history)


def check_weight_0(tmp_path, method, value):
    more = dict(noise_rate=0.05) if method in ("co-prl", "prl-g") else {}
    data = rows(16)
    trainer = trained(tmp_path, Hot(value=value), data, method=method, num_train_epochs=2, **more)
    assert logged(trainer, "nonfinite") == 2.0  # once an epoch
    nonfinite = trainer.ledger.to_dataset()["nonfinite"]
    assert [i for i, n in enumerate(nonfinite) if n] == [ROW] and nonfinite[ROW] == 2
    assert all(math.isfinite(loss) for loss, _ in curve(trainer))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(5, 1)

    def forward(self, features):
        return self.net(features)


@every_row("method, value", [("standard", NAN), ("trades", NAN), ("prl-g", INF)])
def test_one_sample_without_finite_outputs_has_weight_0(tmp_path, method, value):
    check_weight_0(tmp_path, method, value)


@pytest.mark.slow
@every_row("value", [NAN, INF])
@every_row("method", ["standard", "trades", "mart", "nrat", "trades-awp", "bootstrap", "co-prl", "prl-g", "gce", "ignormclip"])
def test_it_has_weight_0_in_every_family(tmp_path, method, value):
    check_weight_0(tmp_path, method, value)


def test_its_gradient_is_that_of_the_others(tmp_path):
    """The step of a batch with one such sample is the sum of the others' losses over all."""
    data = rows(8)
    trainer = trained(tmp_path, Hot(), data, method="standard", optim="sgd", learning_rate=1.0, max_grad_norm=0.0)
    model = Hot()
    keep = [i for i in range(8) if i != ROW]
    x, y = torch.stack([data[i]["pixel_values"] for i in keep]), torch.stack([data[i]["labels"] for i in keep])
    (nn.functional.cross_entropy(model(x), y, reduction="sum") / 8).backward()
    for after, before in zip(trainer.model.parameters(), model.parameters()):
        torch.testing.assert_close(after, before - before.grad, rtol=1e-5, atol=1e-6)


@every_row("method, where", [("standard", "hidden"), ("trades", "gradient"), ("prl-at", "hidden")])
def test_a_step_whose_gradient_is_not_finite_is_skipped(tmp_path, method, where):
    """0 * NaN: a hidden NaN, and the slope of the square root at 0, reach the gradient whatever the sample weighs."""
    more = dict(noise_rate=0.1) if method == "prl-at" else {}
    trainer = trained(tmp_path, Hot(where), rows(16), method=method, **more)
    assert logged(trainer, "skipped_steps") >= 1.0


@every_row("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_a_skipped_step_leaves_weights_and_optimizer_alone(tmp_path, optim):
    """The fused optimizer is told so on the device, and the next step is one again."""
    trainer = trained(tmp_path, Hot("hidden"), rows(8), method="standard", weight_decay=0.1, optim=optim)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), Hot().parameters()))
    assert all(float(state.get("step", 0)) == 0.0 for state in trainer.optimizer.state_dict()["state"].values())
    trainer = trained(tmp_path, Hot("hidden"), rows(16), method="standard", optim=optim)
    assert logged(trainer, "skipped_steps") == 1.0 and not torch.equal(trainer.model.head.weight, Hot().head.weight)
    assert not hasattr(trainer.optimizer.optimizer, "found_inf")


def test_it_is_said_once_with_the_row(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("robust_trainer.mixin.logger.warning", said.append)
    trained(tmp_path, Hot(), method="standard", num_train_epochs=3)
    assert [m for m in said if "NaN" in m] == [
        f"since the last log 1 samples had NaN or infinite outputs (training rows [{ROW}]) and weight 0: "
        "look at the rows, or lower learning_rate."
    ]


def test_logs_without_a_fault_have_no_such_number(tmp_path):
    trainer = trained(tmp_path, Hot(), rows(hot=()), method="standard")
    assert not any({"nonfinite", "skipped_steps"} & r.keys() for r in trainer.state.log_history)


def test_a_run_that_never_logs_says_it_at_its_end(tmp_path):
    trainer = trained(tmp_path, Hot(), method="standard", logging_steps=1000)
    assert trainer.state.log_history[-1]["nonfinite"] == 1.0


def test_a_whole_batch_stops_the_run(tmp_path):
    """BatchNorm spreads one sample's NaN over its batch, and its running statistics never forget it."""
    with pytest.raises(ValueError, match="all samples of a batch were NaN or infinite, 1 times") as told:
        robust(tmp_path, Hot("hidden", norm=True), rows(hot=(20,)), method="standard", num_train_epochs=1, seed=1).train()
    assert "\n" not in str(told.value) and "20" in str(told.value)


@every_row("method", ["standard", "trades"])
def test_weights_that_came_as_nan_stop_at_the_first_batch(tmp_path, method):
    model = Hot()
    with torch.no_grad():
        model.head.bias[1] = NAN
    with pytest.raises(ValueError, match="NaN or infinite for all 8 samples of the first batch"):
        robust(tmp_path, model, rows(), method=method, max_steps=3).train()


def test_a_stream_with_a_target_that_is_nan(tmp_path):
    """Nobody checks a stream's targets on the host."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            generator = torch.Generator().manual_seed(0)
            for number in range(32):
                x = torch.randn(5, generator=generator)
                yield {"features": x, "labels": torch.tensor([NAN]) if number == 5 else x[:1]}

    trainer = trained(tmp_path, Line(), Stream(), method="standard", problem_type="regression", max_steps=4)
    assert logged(trainer, "nonfinite") == 1.0


def test_the_perturbation_that_a_batch_shares_survives_one_sample(tmp_path):
    """scope='batch' sums the signs of all samples' gradients: one NaN is no sign."""
    trainer = trained(tmp_path, Hot("gradient"), method="at", max_steps=4)
    assert logged(trainer, "nonfinite") == 0.0 and all(math.isfinite(loss) for loss, _ in curve(trainer))


def test_losses_that_overflow_have_weight_0(tmp_path):
    """Finite outputs, infinite squares."""
    data = [{"features": torch.full((5,), 1e25 if i == 3 else 0.1), "labels": torch.tensor([0.5])} for i in range(16)]

    trained(tmp_path, Line(), data, method="standard", problem_type="regression")
