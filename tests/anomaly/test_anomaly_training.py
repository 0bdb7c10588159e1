"""Algorithms 1 and 2 of Dissertation through RobustTrainer, against loops written from them; and what is refused without labels."""

import copy
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from helpers.processes import close, ready, trained_together
from helpers.tables import every_row
from helpers.toy import batches, config, curve, settings
from torch import nn
from torch.utils.data import Dataset

from robust_trainer import RobustTrainer
from robust_trainer.anomaly import AnomalyOutput, AutoencoderConfig, AutoencoderModel, RealNVPConfig, RealNVPModel
from robust_trainer.data.randomness import keyed_seed
from robust_trainer.models.peers import PeerModel
from robust_trainer.selection.rules import KeepByScore, derangement
from robust_trainer.types import Progress

WIDTH = 5


def table(n=256, outliers=0.1, seed=0):
    """Rows near a curve in [0, 1]^5, the last ones anywhere in it."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 1, (n, 1))
    x = 0.5 + 0.3 * np.sin(3 * t + np.arange(WIDTH)) + 0.02 * rng.normal(size=(n, WIDTH))
    far = round(outliers * n)
    if far:
        x[-far:] = rng.uniform(0, 1, (far, WIDTH))
    return x.astype(np.float32)


def rows(n=256, **columns):
    return datasets.Dataset.from_dict({"features": table(n).tolist(), **columns}).with_format("torch")


def autoencoder(dropout=0.0, seed=0, **config):
    torch.manual_seed(seed)
    return AutoencoderModel(AutoencoderConfig(WIDTH, 8, 3, dropout, **config))


def flow(lipschitz=None, seed=0):
    torch.manual_seed(seed)
    return RealNVPModel(RealNVPConfig(WIDTH, 2, 8, lipschitz))


def run(tmp_path, model, data=None, trainer=None, **given):
    args = dict(per_device_train_batch_size=128, num_train_epochs=4, optim="sgd", learning_rate=0.05, max_grad_norm=0.0)
    return RobustTrainer(
        model=model, args=config(**settings(tmp_path, **{**args, **given})), train_dataset=rows() if data is None else data,
        **(trainer or {}),
    )  # fmt: skip


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def kept_by_epoch(rate, alpha, epochs):
    """beta of Algorithm 1, epoch by epoch, from its line 8."""
    beta, found = 1.0, []
    for _ in range(epochs):
        found.append(beta)
        beta = max(beta - rate / (alpha * epochs), 1 - rate)
    return found


def descend(net, loss, rate):
    with torch.no_grad():
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p -= rate * g


# ---- the algorithms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks,variational", [(2, False), (3, True)])
def test_rca_is_algorithm_1(tmp_path, monkeypatch, networks, variational):
    """Each network's rows of least error, one by one and with dropout off, go to another one, who steps on them."""
    if variational:  # noise of the code, the same for a row whoever draws it
        monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 0.3))
    rate, epochs = 0.25, 4
    trainer = run(
        tmp_path, autoencoder(variational=variational, kl_weight=0.1), method="rca", num_networks=networks, noise_rate=rate,
        num_train_epochs=epochs,
    )  # fmt: skip
    nets = [copy.deepcopy(peer) for peer in trainer.model.peers]
    seen = batches(trainer)
    trainer.train()
    assert len(seen) == 2 * epochs
    orders = []
    for step, batch in enumerate(seen):
        x = batch["features"]
        kept = round(kept_by_epoch(rate, 0.5, epochs)[step // 2] * len(x))  # a whole number for these settings
        chosen = []
        for net in nets:
            net.eval()
            with torch.no_grad():
                scores = [float(net(row.unsqueeze(0)).scores) for row in x]
            chosen.append(sorted(range(len(x)), key=lambda i: scores[i])[:kept])
        order = [1, 0] if networks == 2 else derangement(networks, keyed_seed("exchange", trainer.args.seed, step))
        orders.append(tuple(order))
        for net, source in zip(nets, order):
            net.train()
            descend(net, net(x[chosen[source]]).losses.sum() / len(chosen[source]), trainer.args.learning_rate)
    told = [row["kept_fraction"] for row in trainer.state.log_history if "loss" in row]
    assert told == pytest.approx([1, 1, 0.875, 0.875] + [0.75] * 4)
    if networks == 3:
        assert set(orders[2:]) == {(1, 2, 0), (2, 0, 1)}  # both ways round, where it matters
    for ours, theirs in zip(trainer.model.peers, nets):
        assert torch.allclose(weights_of(ours), weights_of(theirs), atol=1e-5)
        assert not torch.allclose(weights_of(ours), weights_of(trainer.model.peers[0]), atol=1e-3) or ours is trainer.model.peers[0]


@pytest.mark.parametrize("lipschitz", [None, 0.5])
def test_trim_is_algorithm_2(tmp_path, lipschitz):
    """The rows of least density leave the mean gradient; one power iteration a step where the norms are capped."""
    rate, epochs = 0.25, 3
    trainer = run(tmp_path, flow(lipschitz), method="trim", noise_rate=rate, num_train_epochs=epochs, learning_rate=0.02)
    net = copy.deepcopy(trainer.model).train()
    seen = batches(trainer)
    trainer.train()
    for step, batch in enumerate(seen):
        x = batch["features"]
        layers = net.layers()
        with torch.no_grad():
            density = [-float(net.negative_log_likelihood(row.unsqueeze(0), layers)) for row in x]
        kept = round(kept_by_epoch(rate, 0.05, epochs)[step // 2] * len(x))
        rest = sorted(range(len(x)), key=lambda i: -density[i])[:kept]
        descend(net, net.negative_log_likelihood(x[rest], layers).sum() / kept, trainer.args.learning_rate)
    told = [row["kept_fraction"] for row in trainer.state.log_history if "loss" in row]
    assert told == pytest.approx([1, 1, 0.75, 0.75, 0.75, 0.75])
    assert torch.allclose(weights_of(trainer.model), weights_of(net), atol=1e-5)
    for name, direction in trainer.model.named_buffers():
        assert torch.allclose(direction, dict(net.named_buffers())[name], atol=1e-4)


@every_row("rate", [0.02, 0.1, 0.4])
@every_row("alpha", [0.05, 0.3, 0.5, 1.0])
@every_row("epochs", [2, 7, 60])  # a single epoch has stairs: tests/methods/test_run_length.py
def test_the_kept_share_is_the_papers_recursion(rate, alpha, epochs):
    rule = KeepByScore(rate, drop_schedule="decay", rate_decay_share=alpha)
    for epoch, beta in enumerate(kept_by_epoch(rate, alpha, epochs)):
        for done in (0.0, 1e-12, 0.5, 0.999):  # of the epoch: a share holds for a whole one
            assert 1 - rule.rate(Progress(epoch + done, epochs)) == pytest.approx(beta, abs=1e-12)
    assert rule.rate(Progress(float(epochs), epochs)) == pytest.approx(rate, abs=1e-12)


@every_row("size", [2, 3, 5])
def test_derangements_are_uniform(size):
    """No network trains on its own rows; all such orders are equally likely over the steps of a run."""
    count, every = 3000, {2: 1, 3: 2, 5: 44}[size]
    found = Counter(tuple(derangement(size, keyed_seed("exchange", 3, step))) for step in range(count))
    assert all(sorted(order) == list(range(size)) and all(a != b for a, b in enumerate(order)) for order in found)
    assert len(found) == every
    p = 1 / every
    assert all(abs(n / count - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-12 for n in found.values())
    assert derangement(size, 5) == derangement(size, 5)


# ---- selection by the forward in evaluation mode -----------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2])
def test_selection_is_by_the_evaluation_forward(tmp_path, micro):
    """With dropout, errors are ranked as they are without it, each network's rows go to the other, and the ledger has them."""
    trainer = run(
        tmp_path, autoencoder(dropout=0.5), method="rca", noise_rate=0.25, drop_schedule="constant", num_train_epochs=1,
        per_device_train_batch_size=128 // micro, gradient_accumulation_steps=micro, learning_rate=0.3,
    )  # fmt: skip
    own, told, modes, scored = trainer.training_step, [], [], {}

    def step(model, inputs, *args, **kwargs):
        if trainer._step_plan is None:  # the weights as they are when the step is planned
            calm = copy.deepcopy(trainer.model).eval()
            with torch.no_grad():
                window = [calm(batch["features"]).peer_losses[..., 1].T for batch in trainer._micro_inputs]
            told.append((torch.cat(window, 1), []))
            scored.update(
                zip(torch.cat([b["_robust_index"] for b in trainer._micro_inputs]).tolist(), torch.cat(window, 1).mean(0))
            )
        loss = own(model, inputs, *args, **kwargs)
        plan = trainer._step_plan
        place = next(i for i, b in enumerate(plan.batches) if torch.equal(b.batch.inputs["features"], inputs["features"]))
        told[-1][1].append((plan.batches[place].eval_scores, plan.weights.samples[place].rule))
        return loss

    trainer.training_step = step

    def watch(net, *_):
        if any(net is peer for peer in trainer.model.peers):  # and no copy, which has the hook too
            modes.append((net.training, torch.is_grad_enabled()))

    for peer in trainer.model.peers:
        peer.register_forward_hook(watch)
    trainer.train()
    assert len(told) == 2 and modes == ([(False, False)] * 2 * micro + [(True, True)] * 2 * micro) * 2
    for expected, parts in told:
        assert torch.allclose(torch.cat([scores for scores, _ in parts], 1), expected, atol=1e-6)
        trusted = torch.cat([rule for _, rule in parts], 1)
        for number in (0, 1):
            best = expected[1 - number].argsort()[:96]
            assert set(trusted[number].nonzero().flatten().tolist()) == set(best.tolist())
    ledger = trainer.ledger.columns["last_score"]
    assert torch.allclose(ledger, torch.stack([scored[i] for i in range(256)]), atol=1e-6)
    with torch.no_grad():
        noisy = trainer.model.train()(trainer.train_dataset["features"][:]).scores
    assert not torch.allclose(ledger, noisy, rtol=0.05)


def test_scoring_leaves_no_trace(tmp_path):
    """Buffers, modes and random numbers are as without it: trusting everybody is plain training of the same networks."""
    ends = []
    for given in (dict(method="rca", noise_rate=0.0), dict(method="co-teaching", noise_rate=0.0)):
        peers = PeerModel.of([autoencoder(0.4, seed) for seed in (0, 1)])
        trainer = run(tmp_path, peers, optim="adamw_torch", learning_rate=1e-2, **given)
        trainer.train()
        ends.append((curve(trainer), weights_of(trainer.model)))
    assert np.allclose(ends[0][0], ends[1][0], rtol=1e-6) and torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("lipschitz", [None, 0.7])
def test_trimming_nobody_is_plain_training(tmp_path, lipschitz):
    ends = []
    for given in (dict(method="trim", noise_rate=0.0), dict(method="standard")):
        trainer = run(tmp_path, flow(lipschitz), **given)
        trainer.train()
        ends.append((curve(trainer), weights_of(trainer.model)))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])


# ---- the same trajectory however it is cut ----------------------------------------------------------------------------------


def make(kind):
    return {"rca": lambda: (autoencoder(), dict(method="rca", num_networks=3)), "trim": lambda: (flow(), dict(method="trim")),
            "capped": lambda: (flow(0.5), dict(method="trim"))}[kind]()  # fmt: skip


@pytest.mark.parametrize("kind,atol", [("rca", 1e-5), ("trim", 1e-5), ("capped", 2e-3)])
def test_accumulation_is_a_larger_batch(tmp_path, kind, atol):
    """2 x 128 is 1 x 256. A capped flow iterates at each of the two forwards, so its norms are known a little better."""
    data, found = rows(512), []
    for micro in (1, 2):
        model, given = make(kind)
        trainer = run(
            tmp_path, model, data, noise_rate=0.2, per_device_train_batch_size=256 // micro, gradient_accumulation_steps=micro,
            **given,
        )  # fmt: skip
        trainer.train()
        found.append((ready(trainer.state.log_history), weights_of(trainer.model), trainer.ledger.columns))
    close(found[0][0], found[1][0], rel=2e-4 if atol < 1e-4 else 5e-3)
    assert torch.allclose(found[0][1], found[1][1], atol=atol)
    for name in ("seen", "kept", "doubt"):
        apart = (found[0][2][name] != found[1][2][name]).float().mean()
        assert apart <= (0 if atol < 1e-4 else 0.02), (name, apart)


@pytest.mark.parametrize("kind", ["rca", "trim"])
def test_resumed_is_a_straight_run(tmp_path, kind):
    """Weights, logs and ledger, with dropout, three networks and batches that are ranked among those before them."""

    def trainer(folder):
        model = autoencoder(0.5) if kind == "rca" else flow(0.7)
        return run(
            tmp_path / folder, model, rows(200), method=kind, noise_rate=0.2, per_device_train_batch_size=48, optim="adamw_torch",
            save_strategy="steps", save_steps=7, **({"num_networks": 3} if kind == "rca" else {}),
        )  # fmt: skip

    straight, resumed = trainer("straight"), trainer("resumed")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-7"))  # in the second epoch of 5 steps each
    assert straight.state.global_step == 20
    assert ready(resumed.state.log_history) == ready(straight.state.log_history)
    assert torch.equal(weights_of(straight.model), weights_of(resumed.model))
    for name, column in straight.ledger.columns.items():
        assert torch.equal(column, resumed.ledger.columns[name]), name
    assert all(torch.equal(b, dict(resumed.model.named_buffers())[name]) for name, b in straight.model.named_buffers())


def outcome(kind, size, tmp_path):
    """One run's logs and counts, for processes to be compared by."""

    def work(out):
        model, given = make(kind)
        trainer = run(
            out, model, rows(512), noise_rate=0.2, per_device_train_batch_size=size, ddp_find_unused_parameters=False, **given
        )
        trainer.train()
        columns = {name: trainer.ledger.columns[name].tolist() for name in ("seen", "kept", "doubt", "mean_score")}
        weights = weights_of(trainer.accelerator.unwrap_model(trainer.model)).tolist()
        return trainer, [ready(trainer.state.log_history), columns, weights]

    return trained_together(work, 1 if size == 256 else 2, tmp_path)


@pytest.mark.parametrize("kind", ["rca", "capped"])
def test_two_processes_are_one(tmp_path, kind):
    """gloo on the CPU, 2 x 128: the trajectory of one process with batches of 256."""
    one, two = outcome(kind, 256, tmp_path), outcome(kind, 128, tmp_path)
    close(one[0], two[0], rel=1e-3)
    assert one[1]["seen"] == two[1]["seen"] == [4] * 512
    assert one[1]["kept"] == two[1]["kept"] and one[1]["doubt"] == two[1]["doubt"]
    assert one[1]["mean_score"] == pytest.approx(two[1]["mean_score"], rel=1e-3, abs=1e-4)
    assert one[2] == pytest.approx(two[2], abs=1e-4)


# ---- data, evaluation, what the ledger tells ----------------------------------------------------------------------------------


class Rows(Dataset):
    """A torch data set with a column that no model takes."""

    def __init__(self, n=256):
        self.x = torch.from_numpy(table(n))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"features": self.x[i], "name": torch.zeros(2)}


DATA = {
    "torch format": lambda: rows(),
    "no format": lambda: rows().with_format(None),
    "numpy format": lambda: rows().with_format("numpy"),
    "doubles": lambda: datasets.Dataset.from_dict({"features": table().astype(np.float64)}).with_format("numpy"),
    "more columns": lambda: rows(name=["a"] * 256, labels=[0] * 256),
    "a label": lambda: rows(label=[0] * 256),
    "a transform": lambda: rows().with_transform(lambda batch: {"features": [torch.tensor(row) for row in batch["features"]]}),
    "torch data set": Rows,
    "list": lambda: [{"features": torch.from_numpy(row)} for row in table()],
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    torch.manual_seed(0)
    trainer = run(tmp_path_factory.mktemp("straight"), autoencoder(), method="rca", noise_rate=0.2)
    trainer.train()
    return weights_of(trainer.model)


@every_row("case", DATA)
def test_rows_come_in_any_data_set(tmp_path, straight, case):
    trainer = run(tmp_path, autoencoder(), DATA[case](), method="rca", noise_rate=0.2)
    trainer.train()
    assert torch.allclose(weights_of(trainer.model), straight, atol=1e-6)
    assert (trainer.ledger.columns["seen"] == 4).all()


@pytest.mark.parametrize("method", ["rca", "trim"])
def test_a_stream_is_filtered_without_a_ledger(tmp_path, method):
    trainer = run(
        tmp_path, autoencoder(), rows().to_iterable_dataset(), method=method, noise_rate=0.25, drop_schedule="constant", max_steps=3
    )
    trainer.train()
    assert trainer.ledger is None
    assert [r["kept_fraction"] for r in trainer.state.log_history if "loss" in r] == [0.75] * 3


@pytest.mark.parametrize("kind", ["rca", "trim"])
def test_evaluation_reports_the_mean_loss(tmp_path, kind):
    """In evaluation mode, over all rows, of all networks; before and after training, and while the best model is looked for."""
    model = autoencoder(0.5, variational=True) if kind == "rca" else flow(0.7)
    held = rows(60)
    trainer = run(
        tmp_path, model, trainer={"eval_dataset": held}, method=kind, noise_rate=0.1, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="loss", per_device_eval_batch_size=60,
    )  # fmt: skip

    def expected():
        with torch.no_grad():
            nets = trainer.model.peers if kind == "rca" else [trainer.model]
            return float(torch.stack([net.eval()(held["features"][:]).losses for net in nets]).mean())

    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected(), rel=1e-5)
    trainer.train()
    told = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row][1:]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected(), rel=1e-5) == pytest.approx(min(told), rel=1e-5)
    losses, scores = trainer.predict(held).predictions
    assert losses.shape == scores.shape == (60,) and losses.mean() == pytest.approx(expected(), rel=1e-5)


@pytest.mark.parametrize("kind", ["rca", "trim"])
@every_row("columns", [{}, {"label": [0] * 40}, {"labels": [1] * 40}])
@every_row("label_names", [None, ["labels"]])
def test_metrics_of_one_and_of_two_networks(tmp_path, kind, columns, label_names):
    """Of their mean losses and scores; labels that the rows to judge come with do not reach the model."""

    def scores(found):
        return {"rows": len(found.predictions[1]), "mean": float(found.predictions[1].mean())}

    trainer = run(
        tmp_path, autoencoder() if kind == "rca" else flow(), method=kind, max_steps=2, label_names=label_names,
        trainer={"eval_dataset": rows(40, **columns), "compute_metrics": scores},
    )  # fmt: skip
    before = trainer.evaluate()
    assert before["eval_mean"] == pytest.approx(before["eval_loss"], rel=1e-5)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_mean"] == pytest.approx(metrics["eval_loss"], rel=1e-5) and metrics["eval_rows"] == 40


@pytest.mark.parametrize("method", ["rca", "trim"])
def test_outliers_are_distrusted(tmp_path, method):
    truth = [i >= 230 for i in range(256)]
    model = autoencoder(0.1) if method == "rca" else flow()
    trainer = run(
        tmp_path, model, rows(is_corrupted=truth), method=method, noise_rate=0.1, num_train_epochs=40, optim="adamw_torch",
        learning_rate=1e-2, logging_strategy="epoch", per_device_train_batch_size=64,
    )  # fmt: skip
    trainer.train()
    found = trainer.distrusted_samples().with_format("numpy")
    hits = np.asarray(found["index"][:]) >= 230
    assert 13 <= len(found) <= 45 and hits.mean() > 0.6 and found["is_corrupted"][:].tolist() == hits.tolist()
    assert np.all(np.diff(found["mean_score"][:]) <= 0)
    kept = trainer.ledger.columns["kept"].float()
    assert kept[230:].mean() < 0.75 * kept[:230].mean()
    last = [row for row in trainer.state.log_history if "filter_auroc" in row][-1]
    assert last["filter_auroc"] > 0.9 and last["kept_corrupted"] < 0.6 < 0.9 < last["kept_clean"]
    try:
        audit = trainer.audit()
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert len(audit) == 256 and audit.noise_rate is None and (audit.column("suggested_label") == -1).all()


# ---- models of the user's own ---------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A linear autoencoder that is no transformers model. give: from losses (B,) to what it returns."""

    sample_losses = True

    def __init__(self, give):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up, self.give = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH), give

    def forward(self, features):
        return self.give((self.up(self.down(features).tanh()) - features).square().sum(1))


GOOD = {
    "output": lambda e: AnomalyOutput(loss=e.mean(), losses=e, scores=e.detach()),
    "without scores": lambda e: AnomalyOutput(loss=e.mean(), losses=e),
    "scores with a gradient": lambda e: AnomalyOutput(loss=e.mean(), losses=e, scores=e),
    "dict": lambda e: {"loss": e.mean(), "losses": e, "scores": e.detach()},
}
BAD = {
    "a column": (lambda e: AnomalyOutput(loss=e.mean(), losses=e[:, None], scores=e.detach()), r"losses are \(128, 1\)"),
    "their mean": (lambda e: AnomalyOutput(loss=e.mean(), losses=e.mean(), scores=e.detach()), r"losses are \(\)"),
    "too few": (lambda e: AnomalyOutput(loss=e.mean(), losses=e[1:], scores=e[1:].detach()), r"losses are \(127,\)"),
    "none": (lambda e: AnomalyOutput(loss=e.mean()), "losses are none"),
    "a tuple": (lambda e: (e.mean(), e, e.detach()), "losses are none"),
    "a column of scores": (lambda e: AnomalyOutput(loss=e.mean(), losses=e, scores=e[:, None].detach()), r"scores are \(128, 1\)"),
}
BOTH = every_row("method", ["rca", "trim"])


@BOTH
@every_row("case", GOOD)
def test_a_model_of_the_users_own_trains(tmp_path, method, case):
    trainer = run(tmp_path, Own(GOOD[case]), method=method, noise_rate=0.2, num_train_epochs=8, trainer={"eval_dataset": rows(50)})
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    assert trainer.state.log_history[-2].get("kept_fraction", 0.8) == pytest.approx(0.8, abs=0.01)
    reference = run(tmp_path, Own(GOOD["output"]), method=method, noise_rate=0.2, num_train_epochs=8)
    reference.train()
    assert torch.equal(weights_of(trainer.model), weights_of(reference.model))


@BOTH
@every_row("case", BAD)
def test_losses_of_another_shape_are_refused(tmp_path, method, case):
    give, told = BAD[case]
    with pytest.raises(ValueError, match=rf"needs one (loss|score) per sample of shape \(128,\), the model's {told}") as caught:
        run(tmp_path, Own(give), method=method).train()
    assert "\n" not in str(caught.value)


# ---- refusals --------------------------------------------------------------------------------------------------------------------


LABELS = "needs labelled samples, the model has only losses of its own: use standard, spl, trim, co-teaching or rca"
REFUSED = {
    **{name: (dict(method=name), f"method '{name}' with these settings {LABELS}") for name in (
        "pgd-at", "trades", "fast-at", "gce", "mae", "bootstrap", "bootstrap-soft", "decouple", "rebalanced", "erat", "prl-g"
    )},
    "estimated rate": (dict(method="rca", noise_rate="auto"), "noise_rate='auto' needs one class label per sample: give a number"),
    "confident joint": (dict(method="trim", noise_rate="confident-joint"), "noise_rate='confident-joint' needs one class label"),
    "per class": (dict(method="rca", per_class=True), LABELS),
    "rebalance": (dict(method="trim", rebalance=True), LABELS),
    "a loss on labels": (dict(method="rca", objective="mae"), LABELS),
    "cross-entropy": (dict(method="rca", objective="ce"), "objective='ce' is a loss on class labels"),
    "problem": (dict(method="trim", problem_type="regression"), "problem_type='regression' but AutoencoderModel has no labels"),
    "problem of peers": (dict(method="rca", problem_type="single_label_classification"), "but PeerModel has no labels"),
    "smoothing": (dict(method="rca", label_smoothing_factor=0.1), "label_smoothing_factor=0.1 is for the cross-entropy"),
    "predictions": (dict(method="rca", ledger_predictions=True), "ledger_predictions=True is for class labels"),
    "range": (dict(method="rca", noise_rate=1.0), r"noise_rate=1.0 must be in \[0, 1\)"),
    "decay share": (dict(method="rca", rate_decay_share=0.0), r"rate_decay_share=0.0 must be in \(0, 1\]"),
    "peer_exchange": (dict(method="rca", peer_exchange="own"), "peer_exchange='own' is unknown: choose one of next, shuffled"),
    "one network": (dict(method="rca", num_networks=1), "num_networks=1 must be a whole number >= 2"),
    "foreign": (dict(method="trim", num_networks=2), "method 'trim' takes no 'num_networks'"),
}  # fmt: skip


@every_row("case", REFUSED)
def test_refusals(tmp_path, case):
    given, told = REFUSED[case]
    with pytest.raises(ValueError, match=told) as caught:
        run(tmp_path, autoencoder(), **given).train()
    assert "\n" not in str(caught.value)


def test_a_loss_of_the_users_is_refused(tmp_path):
    for method, told in (("trim", "compute_loss_func has no effect on a model that returns"), ("rca", "compute_loss_func")):
        with pytest.raises(ValueError, match=told) as caught:
            run(tmp_path, autoencoder(), method=method, trainer={"compute_loss_func": lambda o, y, **k: o}).train()
        assert "\n" not in str(caught.value)


@every_row("value", [float("nan"), float("inf")])
@every_row("kind", ["datasets", "torch"])
def test_rows_that_are_no_numbers(tmp_path, value, kind):
    x = table()
    x[7, 2] = value
    data = [{"features": torch.from_numpy(row)} for row in x]
    if kind == "datasets":
        data = datasets.Dataset.from_dict({"features": x.tolist()}).with_format("torch")
    with pytest.raises(ValueError, match=r"'features' is NaN or infinite in training rows \[7\]") as caught:
        run(tmp_path, flow(), data, method="trim").train()
    assert "\n" not in str(caught.value)


@every_row("method", ["spl", "prl", "min-sgd", "co-teaching", "co-prl", "standard", "normclip"])
def test_other_methods_take_the_models_own_losses(tmp_path, method):
    """A law: at rate zero they are all the plain mean; with a rate they keep the share that they say."""
    given = {} if method in ("standard", "normclip", "min-sgd") else {"noise_rate": 0.25, "drop_schedule": "constant"}
    trainer = run(tmp_path, autoencoder(), method=method, num_train_epochs=2, **given)
    trainer.train()
    share = {"min-sgd": 1 / 128}.get(method, 0.75 if given else 1.0)
    told = [row["kept_fraction"] for row in trainer.state.log_history if "loss" in row]
    assert told == pytest.approx([share] * 4)
