"""A loss that the model's own forward computes is minimised for each sample, or refused: never replaced without a word."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from helpers.toy import Logits, batches, curve, images, robust, vit
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

WEIGHTS = torch.tensor([1.0, 2.0, 5.0, 0.5])


def focal(logits, labels, **more):
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1.0 - (-losses).exp()).square() * losses).mean()


def in_batch(logits, labels):
    """No mean of losses of samples: what a sample costs depends on the others."""
    return F.cross_entropy(logits - logits.mean(0), labels)


OWN = {
    "weights": lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS),
    "weights, a module": lambda z, y: nn.CrossEntropyLoss(weight=WEIGHTS)(z, y),
    "smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "focal": focal,
}
EACH = {
    "weights": lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS, reduction="none"),
    "weights, a module": lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS, reduction="none"),
    "smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, reduction="none"),
    "focal": lambda z, y: torch.stack([focal(z[i : i + 1], y[i : i + 1]) for i in range(len(y))]),
}
REFUSED = {
    "auxiliary": lambda z, y: F.cross_entropy(z, y) + 0.1 * z.square().mean(),
    "scaled": lambda z, y: 2.0 * F.cross_entropy(z, y),
    "in the batch": in_batch,
    "two heads": lambda z, y: (F.cross_entropy(z, y) + F.cross_entropy(2.0 * z, y)) / 2.0,
}


class Own(Logits):
    """A classifier whose forward has a loss of its own; ``kept`` keeps it as a method, too."""

    def __init__(self, loss, kept=False, zero=False, as_tuple=False):
        torch.manual_seed(0)
        super().__init__()
        self.own, self.as_tuple = loss, as_tuple
        if kept:
            self.loss_function = loss
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        loss = None if labels is None else self.own(logits, labels)
        if self.as_tuple:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)


def first_loss(tmp_path, model, method="standard", **more):
    """The loss of the first step, and its batch with the logits that it had."""
    trainer = robust(tmp_path, model, images(16), method=method, max_steps=1, learning_rate=0.0, **more)
    seen = batches(trainer)
    trainer.train()
    with torch.no_grad():
        network = model.eval()
        logits = Logits.forward(network, seen[0]["pixel_values"])
    return curve(trainer)[0][0], logits, seen[0]["labels"]


@every_row("case", OWN)
def test_a_loss_of_each_sample_is_minimised(tmp_path, case):
    loss, logits, labels = first_loss(tmp_path, Own(OWN[case], kept=case == "focal"))
    assert loss == pytest.approx(float(EACH[case](logits, labels).mean()), rel=1e-5)
    assert abs(loss - float(F.cross_entropy(logits, labels))) > 1e-4


def test_what_a_filter_leaves_out_counts_in_no_own_loss(tmp_path):
    """The kept samples' weighted losses over their number, and TRADES' and two networks' as one network's."""
    seen = {}
    for method in ("prl", "co-prl", "trades"):
        more = {} if method == "trades" else dict(noise_rate=0.25, drop_schedule="constant", rank_among="batch")
        loss, logits, labels = first_loss(tmp_path, Own(OWN["weights"]), method=method, **more)
        seen[method] = loss
        if method == "prl":
            scores = (logits.softmax(-1) - F.one_hot(labels, 4)).norm(dim=-1)
            kept = scores.argsort()[:6]
            assert loss == pytest.approx(float(EACH["weights"](logits, labels)[kept].mean()), rel=1e-5)
    assert seen["co-prl"] > 2.0 and seen["trades"] > 2.0  # cross-entropy starts at log 4


@every_row("method", ["standard", "trades", "co-prl"])
@every_row("case", REFUSED)
def test_a_loss_that_cannot_be_had_is_refused(tmp_path, case, method):
    if method != "standard" and case != "auxiliary":
        pytest.skip("one case for each method")
    with pytest.raises(ValueError, match=r"the model's own loss \(Own: .* on the first batch, where the mean ce") as told:
        robust(tmp_path, Own(REFUSED[case]), images(16), method=method, max_steps=1).train()
    assert "compute_loss_func" in str(told.value) and "\n" not in str(told.value)


def test_one_output_for_two_classes_is_told_as_without_a_loss(tmp_path):
    """Seen before: IndexError "Target 1 is out of bounds" out of the search for the model's own loss."""

    class One(Own):
        def forward(self, pixel_values, labels=None):
            logits = Logits.forward(self, pixel_values)[:, :1]
            loss = None if labels is None else F.binary_cross_entropy_with_logits(logits[:, 0], (labels > 1).float())
            return ImageClassifierOutput(loss=loss, logits=logits)

    with pytest.raises(ValueError, match="the model has 1 outputs") as told:
        robust(tmp_path, One(None), images(16), method="standard", max_steps=1).train()
    assert "\n" not in str(told.value)


def test_focal_loss_inside_forward_alone_is_refused_and_as_a_function_of_transformers_is_not(tmp_path):
    with pytest.raises(ValueError, match="the model's own loss"):
        robust(tmp_path, Own(focal), images(16), method="standard", max_steps=1).train()
    robust(tmp_path, Own(focal, kept=True), images(16), method="co-prl", max_steps=1).train()


@every_row("method", ["standard", "co-prl"])
def test_a_loss_function_given_to_a_transformers_model(tmp_path, method):
    """As transformers documents it: ``model.loss_function = mine``; its heads' own is the plain one."""
    for own, kind in ((None, "CrossEntropy"), (lambda labels, logits, config, **more: focal(logits, labels), "OwnLoss")):
        model = vit()
        if own is not None:
            model.loss_function = own
        trainer = robust(tmp_path, model, images(16), method=method, max_steps=1)
        trainer.train()
        assert type(trainer._robust_step.run.recipe.objective).__name__ == kind
        assert (curve(trainer)[0][0] < 1.0) == (own is not None)  # a cross-entropy starts at log 4


def test_mixtures_of_labels_fit_no_own_loss(tmp_path):
    with pytest.raises(ValueError, match="label mixtures of method 'bootstrap'"):
        robust(tmp_path, Own(OWN["smoothing"]), images(16), method="bootstrap", max_steps=1).train()


@every_row("case", ["weights", "smoothing"])
def test_settings_of_the_loss_are_seen_where_all_logits_are_equal(tmp_path, case):
    """A head that starts at zero: any weighted mean of equal losses is the plain one."""
    trainer = robust(tmp_path, Own(OWN[case], zero=True), images(16), method="standard", max_steps=1)
    trainer.train()
    assert type(trainer._robust_step.run.recipe.objective).__name__ == "OwnLoss"


def test_outputs_as_a_tuple(tmp_path):
    loss, logits, labels = first_loss(tmp_path, Own(OWN["weights"], as_tuple=True))
    assert loss == pytest.approx(float(EACH["weights"](logits, labels).mean()), rel=1e-5)


def test_several_labels_with_weights(tmp_path):
    """pos_weight of the binary cross-entropy."""
    weight = torch.tensor([3.0, 1.0, 1.0, 9.0])
    model = Own(lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=weight))
    rows = [{"pixel_values": r["pixel_values"], "labels": F.one_hot(r["labels"], 4).float()} for r in images(16)]
    trainer = robust(
        tmp_path, model, rows, method="standard", problem_type="multi_label_classification", max_steps=1, learning_rate=0.0,
    )  # fmt: skip
    seen = batches(trainer)
    trainer.train()
    expected = model.own(Logits.forward(model, seen[0]["pixel_values"]), seen[0]["labels"])
    assert curve(trainer)[0][0] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_named_objective_is_the_users_own_word(tmp_path):
    loss, logits, labels = first_loss(tmp_path, Own(REFUSED["scaled"]), objective="ce")
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_the_look_at_the_own_loss_leaves_no_trace(tmp_path):
    """One more forward at the first batch: no random number, no running statistic of it stays."""

    class Drops(Own):
        def __init__(self, loss):
            super().__init__(loss)
            self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)

        def forward(self, pixel_values, labels=None):
            logits = Logits.forward(self, self.drop(self.norm(pixel_values)))
            return ImageClassifierOutput(loss=None if labels is None else self.own(logits, labels), logits=logits)

    runs = []
    for objective in ("auto", "ce"):  # the second does not look
        trainer = robust(tmp_path, Drops(F.cross_entropy), images(16), method="standard", max_steps=2, objective=objective)
        trainer.train()
        runs.append((curve(trainer), [v.clone() for v in trainer.model.state_dict().values()]))
    assert runs[0][0] == runs[1][0] and all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1]))
