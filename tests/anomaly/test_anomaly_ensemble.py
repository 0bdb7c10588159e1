"""RCA's scores at test time: the fast ensemble is the slow loop over networks with units left out, and so is the random one."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row

from robust_trainer.anomaly import RCA, AutoencoderConfig, AutoencoderModel
from robust_trainer.anomaly.ensemble import GROUPS, Kept, ensemble_scores, groups_of
from robust_trainer.data.randomness import keyed_generator


def network(seed, variational=False, dropout=0.5, hidden=12, latent=4, d=5):
    """With weights larger than the initial ones, so that what is left out matters."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(d, hidden, latent, dropout, variational)
    model = AutoencoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0
    return model


def rows(n=7, d=5, seed=3):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def masks_of(kept, size):
    """(V, size): what each thinned copy multiplies each unit by."""
    return torch.zeros(len(kept.units), size).scatter_add_(1, kept.units, kept.weight)


def drawn(networks, passes, seed, group):
    """The masks of the four layers of each network, (V, size) each, drawn as those of a group of rows are."""
    generator, found = keyed_generator("dropout", seed, group), []
    for model in networks:
        c = model.config
        sizes = (c.hidden_size, c.hidden_size, c.latent_size, c.hidden_size)
        rates = (c.dropout, c.dropout, 0.0 if c.variational else c.dropout, c.dropout)
        found.append([masks_of(Kept.draw(s, r, passes, generator), s).double() for s, r in zip(sizes, rates)])
    return found


@torch.no_grad()
def slow_scores(networks, x, passes, seed):
    """One row, one pass, one network at a time."""
    nets, total = [copy.deepcopy(model).double() for model in networks], []
    for single in x:
        row, errors = single.double(), []
        for net, masks in zip(nets, drawn(networks, passes, seed, int(groups_of(single.unsqueeze(0), seed)))):
            for first, second, code, back in zip(*masks):
                hidden = F.leaky_relu(net.encode1(row), 0.1) * first
                hidden = F.leaky_relu(net.encode2(hidden), 0.1) * second
                z = net.encode3(hidden)
                z = z[: net.config.latent_size] if net.config.variational else F.leaky_relu(z, 0.1) * code
                hidden = F.leaky_relu(net.decode1(z), 0.1) * back
                made = net.decode3(F.leaky_relu(net.decode2(hidden), 0.1)).sigmoid()
                errors.append(sum((a - b) ** 2 for a, b in zip(made.tolist(), row.tolist())))
        total.append(sum(errors) / len(errors))
    return torch.tensor(total, dtype=torch.float64)


@every_row("variational", [False, True])
@every_row("dropout", [0.0, 0.3, 0.5, 0.8])
@every_row("passes", [1, 5, 6])
def test_the_ensemble_is_a_loop_over_thinned_networks(variational, dropout, passes):
    networks = [network(seed, variational, dropout) for seed in (0, 1)]
    fast = ensemble_scores(networks, rows(), passes, 11)
    assert torch.allclose(fast.double(), slow_scores(networks, rows(), passes, 11), rtol=1e-5, atol=1e-6)


@every_row("hidden,latent", [(1, 1), (2, 1), (3, 2)])
def test_copies_that_lose_whole_layers(hidden, latent):
    """With few units some copy keeps none of a layer: its output is that of the biases."""
    networks = [network(seed, dropout=0.9, hidden=hidden, latent=latent, d=2) for seed in (0, 1, 2)]
    group = int(groups_of(rows(1, 2), 4))
    assert any((mask.sum(1) == 0).any() for mask in drawn(networks, 9, 4, group)[0])
    fast = ensemble_scores(networks, rows(5, 2), 9, 4)
    assert torch.allclose(fast.double(), slow_scores(networks, rows(5, 2), 9, 4), rtol=1e-5, atol=1e-6)


@every_row("rate", [0.0, 0.3, 0.5, 0.8])
@every_row("passes", [3001, 3000])
def test_units_are_left_out_at_their_rate(rate, passes):
    """Each with the same probability, on its own; what is kept counts 1 / (1 - r), so that its mean is one."""
    kept = Kept.draw(6, rate, passes, torch.Generator().manual_seed(0))
    masks = masks_of(kept, 6)
    assert kept.units.shape == kept.weight.shape and len(masks) == passes
    assert torch.allclose(masks[masks > 0], torch.tensor(1 / (1 - rate)))
    share = (masks == 0).double().mean(0)
    assert ((share - rate).abs() <= 5 * math.sqrt(rate * (1 - rate) / passes)).all()
    assert all(len(set(row.tolist())) == len(row) for row in kept.units)
    if rate:
        apart = torch.corrcoef(masks[::2].double().T) - torch.eye(6)  # one of each pair
        assert apart.abs().max() < 5 / math.sqrt(passes / 2)


@every_row("rate", [0.3, 0.5, 0.8])
def test_passes_come_in_opposite_pairs(rate):
    masks = masks_of(Kept.draw(50, rate, 40, torch.Generator().manual_seed(1)), 50) > 0
    first, second = masks[::2], masks[1::2]
    if rate == 0.5:
        assert (first ^ second).all()
    elif rate < 0.5:
        assert (first | second).all()  # nobody is left out twice
    else:
        assert not (first & second).any()
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("dropout", [0.3, 0.5])
def test_it_agrees_with_stochastic_passes_of_training_mode(monkeypatch, variational, dropout):
    """2000 passes of the training forward, a mask for each row (Algorithm 1), have the same mean within the Monte-Carlo error."""
    if variational:  # the code is its mean at test time
        monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    model, x, passes = network(0, variational, dropout), rows(8), 2000
    with torch.no_grad():
        errors = model.train()(x.repeat(passes, 1)).scores.view(passes, len(x)).double()
        fast = ensemble_scores([model.eval()], x, passes, 5).double()
        plain = model(x).scores.double()
    error = errors.std(0) / math.sqrt(passes)
    apart = (errors.mean(0) - fast).abs() / (math.sqrt(2.0) * error)
    assert (apart < 4.5).all(), apart
    assert ((plain - errors.mean(0)).abs() > 10 * error).any()  # leaving dropout off is something else


def test_no_passes_are_the_networks_as_they_are():
    networks = [network(seed) for seed in (0, 1, 2)]
    plain = torch.stack([n(rows()).scores for n in networks]).mean(0)
    assert torch.equal(ensemble_scores(networks, rows(), 0, 1), plain)
    still = [network(seed, dropout=0.0) for seed in (0, 1)]
    assert torch.allclose(ensemble_scores(still, rows(), 3, 1), ensemble_scores(still, rows(), 0, 1), atol=1e-6)


def test_scores_come_from_the_seed_alone():
    networks = [network(seed) for seed in (0, 1)]
    state = torch.get_rng_state()
    first = ensemble_scores(networks, rows(), 6, 1)
    assert torch.equal(state, torch.get_rng_state()) and not first.requires_grad
    torch.rand(3)
    assert torch.equal(first, ensemble_scores(networks, rows(), 6, 1))
    assert not torch.allclose(first, ensemble_scores(networks, rows(), 6, 2), rtol=1e-3)


def test_two_networks_are_thinned_differently():
    """Twins in one ensemble get other masks, so that they are more than one network."""
    one = network(0)
    alone, twins = ensemble_scores([one], rows(), 4, 1), ensemble_scores([one, one], rows(), 4, 1)
    assert not torch.allclose(alone, twins, rtol=1e-3)


def test_rows_are_spread_over_the_groups():
    """By their own numbers and the seed: evenly, alone as beside others, and whichever zero they hold."""
    x = rows(8000, 3)
    group = groups_of(x, 1)
    count = torch.bincount(group, minlength=GROUPS)
    p = 1 / GROUPS
    assert len(count) == GROUPS and ((count / 8000 - p).abs() < 5 * math.sqrt(p * (1 - p) / 8000)).all()
    assert torch.equal(group[:50], torch.cat([groups_of(row.unsqueeze(0), 1) for row in x[:50]]))
    other = groups_of(x, 2)
    together = (group == other).double().mean()
    assert abs(float(together) - p) < 5 * math.sqrt(p * (1 - p) / 8000)
    assert torch.equal(groups_of(torch.zeros(1, 3), 1), groups_of(-torch.zeros(1, 3), 1))


@pytest.mark.parametrize("passes", [0, 5])
def test_a_row_has_its_score_whatever_is_beside_it(monkeypatch, passes):
    """Alone, in another order, in chunks, beside rows from afar: the same but for the rounding of float32."""
    x = np.random.default_rng(0).normal(size=(90, 4))
    detector = RCA(epochs=1, hidden_size=16, ensemble=passes, random_state=0).fit(x)
    told = detector.decision_function(x)
    assert np.array_equal(told, detector.decision_function(x))
    assert np.array_equal(told, detector.decision_scores_)
    order = np.random.default_rng(1).permutation(90)
    assert np.allclose(told[order], detector.decision_function(x[order]), rtol=1e-5, atol=1e-7)
    alone = np.concatenate([detector.decision_function(row) for row in x[:, None]])
    assert np.allclose(told, alone, rtol=1e-5, atol=1e-7)
    assert np.allclose(told, detector.decision_function(np.vstack([x, np.full((3, 4), 1e5)]))[:90], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr("robust_trainer.anomaly.ensemble.ROWS", 7)
    assert np.allclose(told, detector.decision_function(x), rtol=1e-5, atol=1e-7)
