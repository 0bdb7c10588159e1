"""RealNVP is a density, its cap holds, autoencoders are what the paper draws; both are saved and loaded as transformers models."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from transformers import AutoConfig, AutoModel

from robust_trainer.anomaly import AnomalyOutput, AutoencoderConfig, AutoencoderModel, RealNVPConfig, RealNVPModel
from robust_trainer.models.peers import PeerModel, make_peers
from robust_trainer.models.spectral import cap_factor, power_iteration, spectral_norm


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps(model, d, count=15, **adam):
    """The model after some optimizer steps, in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 3e-2, "weight_decay": 0.1, **adam})
    dtype = next(model.parameters()).dtype
    for step in range(count):
        optimizer.zero_grad()
        model(rows(64, d, step, dtype) * 0.3 + 1.0).loss.backward()
        optimizer.step()
    return model.eval()


def flow(d, lipschitz=None, trained=False, couplings=4, hidden=8, dtype=torch.float64):
    model = RealNVPModel(RealNVPConfig(d, couplings, hidden, lipschitz)).to(dtype).eval()
    return steps(model, d) if trained else model


def autoencoder(d=5, trained=False, dtype=torch.float32, **settings):
    model = AutoencoderModel(AutoencoderConfig(d, **{"hidden_size": 8, "latent_size": 3, **settings})).to(dtype).eval()
    return steps(model, d, 5) if trained else model


FLOWS = [(d, k, trained) for d in (2, 3, 5, 8) for k in (None, 0.7) for trained in (False, True)]


# ---- RealNVP ---------------------------------------------------------------------------------------------------------------


@every_row("d,lipschitz,trained", FLOWS)
def test_every_coupling_is_inverted_and_measured(d, lipschitz, trained):
    """x comes back from y, and the log-determinant is that of autograd's Jacobian, coupling by coupling and for all of them."""
    model, x = flow(d, lipschitz, trained), rows(4, d)
    layers = model.layers()

    def jacobians(function):
        return torch.stack([torch.autograd.functional.jacobian(lambda r: function(r.unsqueeze(0))[0], row) for row in x])

    for number in range(model.config.couplings):
        y, log_det = model.couple(x, number, layers)
        assert torch.allclose(model.uncouple(y, number, layers), x, atol=1e-9)
        sign, slow = torch.linalg.slogdet(jacobians(lambda r, c=number: model.couple(r, c, layers)[0]))
        assert (sign == 1).all() and torch.allclose(log_det, slow, atol=1e-9)
    z, log_det = model.encode(x)
    assert torch.allclose(model.decode(z), x, atol=1e-8)
    sign, slow = torch.linalg.slogdet(jacobians(lambda r: model.encode(r)[0]))
    assert (sign == 1).all() and torch.allclose(log_det, slow, atol=1e-8)


@every_row("d", [2, 3, 5, 8])
def test_a_coupling_is_equation_3_2(d):
    """y_free = x_free exp(s(x_held)) + t(x_held), with s and t written out row by row from the stacked weights."""
    model, x = flow(d, lipschitz=0.5), rows(3, d)
    layers = model.layers()
    for number in range(model.config.couplings):
        held = list(range(d // 2)) if number % 2 == 0 else list(range(d // 2, d))
        free = [i for i in range(d) if i not in held]
        y, _ = model.couple(x, number, layers)
        for row, ours in zip(x, y):
            found = []
            for net in (0, 1):
                hidden = row[held]
                for place, (weight, factor) in enumerate(layers):
                    w = (weight * factor)[number, net]
                    w = w[: len(held)] if place == 0 else w[:, : len(free)] if place == 2 else w
                    hidden = w.T @ hidden + model.biases[place][number, net, 0][: w.shape[1]]
                    hidden = F.leaky_relu(hidden, 0.01) if place < 2 else hidden
                found.append(hidden)
            slow = row.clone()
            slow[free] = row[free] * found[0].tanh().exp() + found[1]
            assert torch.allclose(ours, slow, atol=1e-10)


@every_row("d", [2, 3, 5, 8])
def test_every_column_is_moved_by_every_second_coupling(d):
    model, x = flow(d), rows(6, d)
    moved = torch.stack([(model.couple(x, number, model.layers())[0] != x).all(0) for number in range(4)])
    assert (moved.sum(0) == 2).all() and (moved[0] ^ moved[1]).all()


@every_row("lipschitz", [None, 0.7])
def test_the_density_integrates_to_one(lipschitz):
    model = flow(2, lipschitz, trained=True, hidden=16)
    side = torch.arange(-9.0, 9.0, 0.05, dtype=torch.float64)
    with torch.no_grad():
        mass = (-model(torch.cartesian_prod(side, side)).scores).exp().sum() * 0.05**2
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


@every_row("d", [2, 3, 8])
def test_the_likelihood_is_the_change_of_variables(d):
    model, x = flow(d, 0.7, trained=True), rows(7, d)
    out = model(x)
    prior = MultivariateNormal(torch.zeros(d, dtype=x.dtype), torch.eye(d, dtype=x.dtype))
    for row, loss in zip(x, out.losses):
        jacobian = torch.autograd.functional.jacobian(lambda r: model.encode(r.unsqueeze(0))[0][0], row)
        log_p = prior.log_prob(model.encode(row.unsqueeze(0))[0][0]) + torch.linalg.slogdet(jacobian)[1]
        assert float(loss.detach()) == pytest.approx(-float(log_p.detach()), abs=1e-8)
    assert torch.equal(out.scores, out.losses.detach()) and not out.scores.requires_grad and out.losses.requires_grad
    assert torch.equal(out.loss, out.losses.mean())


def effective(model):
    """(raw, capped) weights of every linear layer of s and t, without the rows and columns that only pad."""
    d = model.config.features
    for place, (weight, factor) in enumerate(model.layers()):
        for number in range(model.config.couplings):
            held = model.held(number)
            for net in (0, 1):
                raw = weight[number, net]
                raw = raw[:held] if place == 0 else raw[:, : d - held] if place == 2 else raw
                yield raw, raw * (1.0 if factor is None else factor[number, net])


def converged(model):
    for number, weight in enumerate(model.weights):
        power_iteration(weight, getattr(model, f"direction{number}"), 3000)
    return model


@every_row("d,k", [(2, 1.5), (5, 0.3)])
def test_spectral_norms_are_capped_and_never_stretched(d, k):
    model = flow(d, k)
    with torch.no_grad():
        for weight in model.weights:
            weight[::2] *= 6.0  # some far above k, some below
    converged(model)
    above = below = 0
    for raw, capped in effective(model):
        before, after = (float(torch.linalg.svdvals(w.detach())[0]) for w in (raw, capped))
        assert after <= k * (1 + 1e-6)
        if before > k:
            above += 1
            assert after == pytest.approx(k, rel=1e-6)
        else:
            below += 1
            assert torch.equal(raw, capped)
    assert above and (below or k < 1)


def test_training_keeps_the_cap_without_further_iterations():
    """One power iteration a step follows the weights: after training the estimate is within a few per cent, and never too high."""
    model = flow(5, 0.7, hidden=16)
    steps(model, 5, 60, lr=1e-2, weight_decay=0.0)
    norms = [[float(torch.linalg.svdvals(w.detach())[0]) for w in pair] for pair in effective(model)]
    assert any(raw > 0.8 for raw, _ in norms)
    assert all(capped <= 0.7 * 1.05 for _, capped in norms)
    for number, weight in enumerate(model.weights):
        estimate = spectral_norm(weight, getattr(model, f"direction{number}"))
        assert (estimate <= torch.linalg.svdvals(weight)[..., 0] * (1 + 1e-9)).all()


@every_row("d", [3, 4])
def test_the_gradient_goes_through_the_cap(d):
    """As if the weights were divided by max(sigma / k, 1) with sigma of a singular value decomposition."""
    model, x = converged(flow(d, 0.6)), rows(9, d)
    ours = torch.autograd.grad(model(x).loss, list(model.weights))
    plain = flow(d)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "direction" not in k})
    weights = [w.detach().clone().requires_grad_() for w in model.weights]
    capped = [(w / (torch.linalg.svdvals(w)[..., :1] / 0.6).clamp_min(1.0).unsqueeze(-1), None) for w in weights]
    assert any((torch.linalg.svdvals(w)[..., 0] > 0.6).any() for w in weights)
    slow = torch.autograd.grad(plain.negative_log_likelihood(x, capped).mean(), weights)
    for a, b in zip(ours, slow):
        assert torch.allclose(a, b, atol=1e-8), (a - b).abs().max()


def test_the_cap_is_differentiable_in_the_weight_alone():
    weight, direction = rows(6, 4).requires_grad_(), rows(1, 4, 1)[0]
    power_iteration(weight, direction, 500)
    assert torch.autograd.gradcheck(lambda w: cap_factor(w, direction, 0.5), weight)
    assert not direction.requires_grad and float(direction.norm()) == pytest.approx(1.0)


def test_capped_layers_give_the_same_density():
    model, x = flow(5, 0.7, trained=True), rows(6, 5)
    assert torch.allclose(model.negative_log_likelihood(x, model.capped_layers()), model(x).losses, atol=1e-12)


@every_row("d", [3, 5])
@every_row("lipschitz", [None, 0.5])
def test_padding_stays_zero(d, lipschitz):
    """For odd d every second coupling has a row or a column that belongs to no column of the data: Adam leaves it at zero."""
    model = flow(d, lipschitz, trained=True)
    first, _, last = model.weights
    padded = 0
    for number in range(4):
        held = model.held(number)
        assert not first[number, :, held:].any() and not last[number, :, :, d - held :].any()
        padded += first[number, :, held:].numel() + last[number, :, :, d - held :].numel()
        assert first[number, :, :held].all() and last[number, :, :, : d - held].all()
    assert padded > 0


def test_evaluation_changes_nothing_and_training_turns_the_directions():
    model, x = flow(4, 0.7), rows(5, 4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = model(x).losses, model(x).losses
    with torch.no_grad():
        model.train()(x)
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(x)
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items() if "direction" in k)


@every_row("d,couplings", [(1, 6), (2, 3), (2, 0), (4, 5)])
def test_flows_that_would_leave_a_column_alone_are_refused(d, couplings):
    with pytest.raises(ValueError, match=f"features={d}, couplings={couplings}: a pair of couplings needs two columns") as caught:
        RealNVPModel(RealNVPConfig(d, couplings))
    assert "\n" not in str(caught.value)


# ---- autoencoders ------------------------------------------------------------------------------------------------------------


def slow_autoencoder(model, x, masks=None, noise=None):
    """Reconstruction (B, d), mean and log-variance of the code, from the weights; masks: what each dropout multiplies by."""
    masks = iter(masks or [])
    thin = lambda hidden: hidden * next(masks, 1.0)  # noqa: E731
    act = lambda layer, v: F.leaky_relu(v @ layer.weight.T + layer.bias, 0.1)  # noqa: E731
    hidden = thin(act(model.encode2, thin(act(model.encode1, x))))
    code, mean, log_variance = hidden @ model.encode3.weight.T + model.encode3.bias, None, None
    if model.config.variational:
        mean, log_variance = code[:, : model.config.latent_size], code[:, model.config.latent_size :]
        code = mean if noise is None else mean + noise * (log_variance / 2).exp()
    else:
        code = thin(F.leaky_relu(code, 0.1))
    hidden = act(model.decode2, thin(act(model.decode1, code)))
    return torch.sigmoid(hidden @ model.decode3.weight.T + model.decode3.bias), mean, log_variance


@every_row("variational", [False, True])
@every_row("d", [2, 5])
def test_autoencoder_output(d, variational):
    model, x = autoencoder(d, trained=True, variational=variational, kl_weight=0.3), rows(6, d, dtype=torch.float32)
    out = model(x)
    found, mean, log_variance = slow_autoencoder(model, x)
    assert isinstance(out, AnomalyOutput) and out.reconstruction.shape == (6, d) and out.losses.shape == out.scores.shape == (6,)
    assert torch.allclose(out.reconstruction, found, atol=1e-6)
    errors = torch.stack([sum((a - b) ** 2 for a, b in zip(row, made)) for row, made in zip(x, found)])
    assert torch.allclose(out.scores, errors, atol=1e-5) and not out.scores.requires_grad
    if variational:
        sigma = (0.5 * log_variance).exp()
        kl = kl_divergence(Normal(mean, sigma), Normal(torch.zeros_like(mean), torch.ones_like(sigma))).sum(1)
        assert (kl > 1e-3).all()
        errors = errors + 0.3 * kl
    assert torch.allclose(out.losses, errors, atol=1e-5) and out.losses.requires_grad
    assert torch.equal(out.loss, out.losses.mean())


@every_row("variational,places", [(False, ["h", "h", "z", "h"]), (True, ["h", "h", "h"])])
def test_dropout_follows_these_layers(monkeypatch, variational, places):
    """After both hidden layers of the encoder, the bottleneck (not a VAE's) and the first hidden layer of the decoder."""
    model, x = autoencoder(variational=variational).train(), rows(6, 5, dtype=torch.float32)
    masks = [torch.rand(6, {"h": 8, "z": 3}[place]) for place in places]
    waiting = iter(masks)
    monkeypatch.setattr(model, "_drop", lambda hidden: hidden * next(waiting))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 0.7))
    out = model(x)
    assert next(waiting, None) is None
    found, *_ = slow_autoencoder(model, x, masks, 0.7)
    assert torch.allclose(out.reconstruction, found, atol=1e-6)


@every_row("share", [0.1, 0.3, 0.5, 0.9])
@every_row("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(share, dtype):
    model = autoencoder(dropout=share).to(dtype).train()
    found = model._drop(torch.ones(400, 500, dtype=dtype))
    kept = found[found != 0]
    assert found.dtype == dtype and torch.allclose(kept, torch.full_like(kept, 1 / (1 - share)), rtol=1e-2)
    # 1 / 256: the steps of uniform numbers in bfloat16
    tolerance = 4 * math.sqrt(share * (1 - share) / found.numel()) + (1 / 256 if dtype == torch.bfloat16 else 0)
    assert 1 - kept.numel() / found.numel() == pytest.approx(share, abs=tolerance)
    if dtype == torch.float64:
        assert float(kept[0]) == pytest.approx(1 / (1 - share), rel=1e-14)


def test_dropout_draws_each_unit_of_each_row():
    model = autoencoder(dropout=0.5).train()
    kept = model._drop(torch.ones(2000, 12)) != 0
    assert not torch.equal(kept[0], kept[1])
    correlation = torch.corrcoef(kept.double().T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


@every_row("variational", [False, True])
def test_evaluation_draws_nothing_and_training_does(variational):
    model, x = autoencoder(variational=variational), rows(6, 5, dtype=torch.float32)
    state = torch.get_rng_state()
    first, second = model(x).losses, model(x).losses
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    model.train()
    assert not torch.equal(model(x).losses, model(x).losses) and not torch.equal(state, torch.get_rng_state())


def test_without_dropout_training_mode_is_evaluation_mode():
    model, x = autoencoder(dropout=0.0), rows(6, 5, dtype=torch.float32)
    state = torch.get_rng_state()
    assert torch.equal(model.train()(x).losses, model.eval()(x).losses) and torch.equal(state, torch.get_rng_state())


# ---- both -----------------------------------------------------------------------------------------------------------------------


MODELS = {
    "ae": lambda: autoencoder(),
    "vae": lambda: autoencoder(variational=True, kl_weight=0.5),
    "flow": lambda: flow(5, dtype=torch.float32),
    "capped flow": lambda: flow(5, 0.7, dtype=torch.float32),
}
KINDS = every_row("kind", MODELS)


@KINDS
def test_saved_and_loaded(tmp_path, kind):
    model, x = steps(MODELS[kind](), 5, 3), rows(6, 5, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))
    for loaded in (type(model).from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is type(model) and loaded.config.to_diff_dict() == model.config.to_diff_dict() and not loaded.training
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
        assert torch.equal(loaded(x).losses, model(x).losses)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)


@KINDS
def test_peers_are_saved_and_loaded_as_one_model(tmp_path, kind):
    model, x = make_peers(MODELS[kind](), 3, seed=5).eval(), rows(6, 5, dtype=torch.float32)
    firsts = [next(peer.parameters()).detach() for peer in model.peers]
    assert not any(torch.equal(firsts[i], firsts[j]) for i in range(3) for j in range(i))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, PeerModel) and len(loaded.peers) == 3 and type(loaded.peers[0]) is type(model.peers[0])
    ours, theirs = model(x), loaded(x)
    assert torch.equal(ours.peer_losses, theirs.peer_losses) and ours.peer_losses.shape == (6, 3, 2)
    for number, peer in enumerate(model.peers):
        out = peer(x)
        assert torch.equal(ours.peer_losses[:, number], torch.stack([out.losses, out.scores], 1))
    assert torch.allclose(ours.losses, torch.stack([peer(x).losses for peer in model.peers]).mean(0))
    assert torch.allclose(ours.scores, torch.stack([peer(x).scores for peer in model.peers]).mean(0))
    assert torch.allclose(ours.loss, ours.losses.mean())


@KINDS
@every_row("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_precisions(tmp_path, kind, dtype):
    """Rows of any float type are taken; what comes out is the model's own type, in training as in evaluation."""
    model = MODELS[kind]()
    x = rows(16, 5)
    exact = copy.deepcopy(model).double()(x).losses
    model.to(dtype)
    for given in (x, x.float()):
        out = model.eval()(given)
        assert {out.loss.dtype, out.losses.dtype, out.scores.dtype} == {dtype}
        assert torch.allclose(out.losses.double(), exact, rtol=1e-5 if dtype == torch.float64 else 0.1)
    model.train()(x).loss.backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g.dtype == dtype and g.isfinite().all() for g in grads)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.dtype == dtype and torch.equal(loaded(x).losses, model(x).losses)


@KINDS
def test_autocast_agrees(kind):
    model, x = MODELS[kind](), rows(16, 5, dtype=torch.float32)
    plain = model(x).losses
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x).losses
        loss = model.train()(x).loss
    loss.backward()
    assert torch.allclose(half.float(), plain, rtol=0.1) and all(p.grad.isfinite().all() for p in model.parameters())
