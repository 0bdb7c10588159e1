"""Two networks as one model: exchange, separate clipping, evaluation, saving, and what cannot be done."""

import copy

import numpy as np
import pytest
import torch
from helpers.toy import CLASSES, Logits, batches, curve, images, logits_module, resnet, robust, settings, vit
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.models.peers import PeerModel, make_peers
from robust_trainer.models.zoo import build_model


def accuracy(p):
    return {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())}


def loss_score(z, y):
    return float(-torch.log_softmax(z, 0)[y])


def prl_score(z, y):
    p = torch.softmax(z, 0)
    return float((p - torch.eye(len(z))[y]).norm())


@pytest.mark.parametrize("method,score", [("co-teaching", loss_score), ("co-prl", prl_score)])
def test_exchange_against_a_two_loop_reference(tmp_path, method, score):
    """Two networks written out: each ranks the batch one sample at a time, and steps on what the other one kept."""
    steps, size, rate, lr, largest = 6, 128, 0.3, 0.5, 0.2
    trainer = robust(
        tmp_path, logits_module(), images(size * 3), method=method, noise_rate=rate, drop_schedule="constant", optim="sgd",
        learning_rate=lr, per_device_train_batch_size=size, max_steps=steps, max_grad_norm=largest, num_train_epochs=2,
    )  # fmt: skip
    nets = [copy.deepcopy(peer) for peer in trainer.model.peers]
    assert any((a != b).any() for a, b in zip(nets[0].parameters(), nets[1].parameters()))
    seen = batches(trainer)
    trainer.train()
    owed = [0.0, 0.0]
    for batch in seen:
        chosen = []
        for number, net in enumerate(nets):
            with torch.no_grad():
                logits = net(batch["pixel_values"])
            scores = [score(z, int(y)) for z, y in zip(logits, batch["labels"])]
            asked = (1 - rate) * size + owed[number]
            keep = int(asked + 1e-4)
            owed[number] = asked - keep
            chosen.append(sorted(range(size), key=lambda i: scores[i])[:keep])
        for net, own in zip(nets, reversed(chosen)):
            loss = sum(nn.functional.cross_entropy(net(batch["pixel_values"][[i]]), batch["labels"][[i]]) for i in own) / len(own)
            grads = torch.autograd.grad(loss, list(net.parameters()))
            norm = torch.sqrt(sum(g.square().sum() for g in grads))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads):
                    p -= lr * g * min(1.0, largest / float(norm + 1e-6))
    assert len(seen) == steps
    for ours, theirs in zip(trainer.model.peers, nets):
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert torch.allclose(a, b, atol=2e-5), (a - b).abs().max()


def test_peers_are_clipped_by_themselves(tmp_path):
    """One peer with a huge gradient leaves the other's step alone."""

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.net, self.scale = logits_module(), scale

        def forward(self, pixel_values):
            return self.net(pixel_values) * self.scale

    moved = []
    for scale in (1.0, 1000.0):
        model = PeerModel.of([Scaled(1.0), Scaled(scale)])
        before = copy.deepcopy(model)
        trainer = robust(
            tmp_path, model, method="co-prl", noise_rate=0.0, optim="sgd", learning_rate=0.1, max_steps=1, max_grad_norm=0.1
        )
        trainer.train()
        pairs = list(zip(before.peers[0].parameters(), trainer.model.peers[0].parameters()))
        moved.append(torch.cat([(a - b).detach().flatten() for a, b in pairs]))
    assert torch.equal(moved[0], moved[1]) and moved[0].norm() == pytest.approx(0.01, rel=1e-3)


def test_decouple_updates_on_disagreement(tmp_path):
    other = logits_module()
    with torch.no_grad():
        other.head.weight += 0.3 * torch.randn(other.head.weight.shape, generator=torch.Generator().manual_seed(0))
    both = PeerModel.of([logits_module(), other])
    trainer = robust(tmp_path, both, images(64), method="decouple", per_device_train_batch_size=64, max_steps=1, warmup_epochs=0)
    model = copy.deepcopy(trainer.model).eval()
    seen = batches(trainer)
    trainer.train()
    with torch.no_grad():
        predicted = model(seen[0]["pixel_values"]).peer_logits.argmax(-1)
    disputed = predicted[:, 0] != predicted[:, 1]
    assert 0 < disputed.sum() < 64
    assert trainer.state.log_history[0]["kept_fraction"] == pytest.approx(float(disputed.float().mean()))
    assert torch.equal(trainer.ledger.kept[seen[0]["_robust_index"]] > 0, disputed)


def small():
    """A model of the package: its forward takes no further keywords."""
    torch.manual_seed(0)
    return build_model("plain-cnn", [str(i) for i in range(CLASSES)], channels=3, image_size=8)[0]


@pytest.mark.parametrize("make", [vit, logits_module, small])
def test_evaluation_reports_the_mean_and_each_peer(tmp_path, make):
    data = images(32)
    hook = {"preprocess_logits_for_metrics": lambda logits, labels: logits * 2.0}
    for extra in ({}, hook):
        trainer = robust(
            tmp_path, make(), data, method="co-prl", max_steps=2,
            trainer={"eval_dataset": data, "compute_metrics": accuracy, **extra},
        )  # fmt: skip
        trainer.train()
        metrics = trainer.evaluate()
        assert {"eval_accuracy", "eval_peer0_accuracy", "eval_peer1_accuracy", "eval_loss"} <= set(metrics)
        found = trainer.predict(data)
        assert found.predictions.shape == (32, CLASSES)
        model = trainer.model.eval()
        with torch.no_grad():
            each = [peer(torch.as_tensor(data["pixel_values"][:])) for peer in model.peers]
        each = [getattr(z, "logits", z) for z in each]
        factor = 2.0 if extra else 1.0
        assert np.allclose(found.predictions, (each[0] + each[1]) / 2 * factor, atol=1e-5)
        for number in (0, 1):
            own = float((each[number].argmax(-1) == data["labels"][:]).float().mean())
            assert metrics[f"eval_peer{number}_accuracy"] == pytest.approx(own)


def test_saved_peers_load_as_one_model(tmp_path):
    trainer = robust(tmp_path, vit(), method="co-prl", max_steps=2, export="ensemble")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    x = torch.as_tensor(images()["pixel_values"][:])
    with torch.no_grad():
        assert torch.equal(loaded(x).peer_logits, trainer.model.eval()(x).peer_logits)
    assert loaded.config.num_labels == CLASSES
    args = TrainingArguments(**settings(tmp_path))
    metrics = RobustTrainer(loaded, args, eval_dataset=images(), compute_metrics=accuracy).evaluate()
    assert {"eval_accuracy", "eval_peer1_accuracy"} <= set(metrics)
    args = TrainingArguments(**settings(tmp_path, remove_unused_columns=False))
    data = images().select_columns(["pixel_values", "labels"])
    plain = Trainer(loaded, args, eval_dataset=data, compute_metrics=accuracy)
    assert plain.evaluate()["eval_accuracy"] == metrics["eval_accuracy"]


def test_model_init_is_called_once_per_peer(tmp_path):
    args = RobustConfig(**settings(tmp_path), method="co-teaching", num_networks=3)
    trainer = RobustTrainer(model_init=lambda: Logits(), args=args, train_dataset=images())
    assert len(trainer.model.peers) == 3
    trainer.train()
    assert len({float(peer.head.weight.detach().sum()) for peer in trainer.model.peers}) == 3


def test_pretrained_peers_keep_their_body(tmp_path):
    vit().save_pretrained(tmp_path)
    model = make_peers(AutoModelForImageClassification.from_pretrained(tmp_path), 2, seed=0)
    a, b = (dict(peer.named_parameters()) for peer in model.peers)
    assert {name for name in a if not torch.equal(a[name], b[name])} == {"classifier.weight", "classifier.bias"}
    fresh = make_peers(vit(), 2, seed=0)
    a, b = (dict(peer.named_parameters()) for peer in fresh.peers)
    assert sum(not torch.equal(a[name], b[name]) for name in a) > 5


def test_equal_peers_on_everything_are_one_network(tmp_path):
    """A law: two equal networks that trust everybody take the steps of one."""
    twins = PeerModel.of([vit(), vit()])
    two = robust(tmp_path, twins, method="co-prl", noise_rate=0.0)
    one = robust(tmp_path, vit(), method="prl", noise_rate=0.0)
    two.train(), one.train()
    losses = [[loss for loss, _ in curve(t)] for t in (two, one)]
    assert np.allclose(*losses, atol=1e-6)
    for peer in two.model.peers:
        for a, b in zip(peer.parameters(), one.model.parameters()):
            assert torch.allclose(a, b, atol=1e-6)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"num_networks=1 must be a whole number >= 2.*method prl or spl"):
        robust(tmp_path, method="co-prl", num_networks=1)
    with pytest.raises(ValueError, match=r"method 'prl' takes no 'num_networks'"):
        robust(tmp_path, method="prl", num_networks=2)
    with pytest.raises(ValueError, match=r"trains num_networks=3 networks, the model has 2"):
        robust(tmp_path, PeerModel.of([vit(), vit()]), method="co-prl", num_networks=3).train()
    with pytest.raises(ValueError, match=r"compute_loss_func and a model of 2 peers"):
        robust(tmp_path, vit(), method="co-prl", trainer={"compute_loss_func": lambda o, y, **k: y}).train()
    with pytest.raises(ValueError, match=r"give two or more networks of one class"):
        PeerModel.of([vit(), resnet()])
    with pytest.raises(ValueError, match=r"method 'prl' trains one network, the model has 2: .* such as model.peers\[0\]"):
        robust(tmp_path, PeerModel.of([vit(), vit()]), method="prl").train()
    one = vit()
    with pytest.raises(ValueError, match=r"networks 0 and 1 share their weights \(vit\..*\): build each one anew"):
        PeerModel.of([one, one])
    trainer = RobustTrainer(vit(), TrainingArguments(**settings(tmp_path)), train_dataset=images())
    trainer._find_recipe = lambda args: METHODS["co-prl"]()
    with pytest.raises(ValueError, match=r"num_networks=2 networks, the model has 1: name the method when"):
        trainer.train()
