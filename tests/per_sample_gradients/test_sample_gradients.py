"""Per-sample gradient norms and weighted gradients against plain autograd on one sample at a time."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from robust_trainer.per_sample_gradients import linear as ghost_norms
from robust_trainer.per_sample_gradients.norms import SampleGradients

B = 5


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 6, padding_idx=0)
        self.body = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.body(self.tokens(x)).tanh()).mean(1))


class Scale(nn.Module):
    """A parameter in no known layer, a child inside."""

    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x, *, power=1):
        return {"out": torch.sigmoid(self.inner(x) * self.scale**power), "again": x * self.scale}


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.scale, self.head = nn.Linear(4, 6), Scale(), nn.Linear(6, 3)
        self.offset = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x):
        out = self.scale(self.first(x), power=2)
        return self.head((out["out"] + out["again"] + self.offset).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Twice(nn.Module):
    """Layers of every kind called twice, on inputs of two sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.layer_norm = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LayerNorm(4)
        self.scale, self.head = nn.PReLU(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.scale(self.norm(self.conv(x)))[:, :, ::2, ::2]
        x = self.scale(self.norm(self.conv(x))).mean((2, 3))
        x = self.layer_norm(self.layer_norm(x).sin())
        return self.head(x) + self.head(x.cos())


class Inplace(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body, self.head = nn.Sequential(*layers), nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def conv(*args, size=(6, 7), kind=nn.Conv2d, **kwargs):
    def make():
        model, x = Inplace(kind(*args, **kwargs), nn.ReLU(inplace=True)), torch.randn(B, args[0], *size)
        model(x)
        return model, x

    return make


def frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model, torch.randn(B, 3, 6, 6)


def batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model(torch.randn(9, 3, 6, 6))
    model[1].eval()
    return model, torch.randn(B, 3, 6, 6)


def vit():
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=2, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config), torch.randn(B, 3, 8, 8)


def bert():
    config = BertConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=9,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config), torch.randint(0, 11, (B, 8))


def llama():
    config = LlamaConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForSequenceClassification(config), torch.randint(1, 11, (B, 8))


def positions():
    return nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 6), nn.Flatten(), nn.Linear(36, 3)), torch.randn(B, 2, 3, 4)


MODELS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3, bias=False)), torch.randn(B, 4)),
    "positions": positions,
    "conv": conv(3, 4, 3),
    "conv stride": conv(3, 4, 3, stride=2, padding=1, bias=False),
    "conv dilation": conv(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2),
    "conv wide": conv(24, 32, 3, padding=1, size=(3, 4)),
    "conv wide stride": conv(24, 32, (3, 2), padding=1, stride=(2, 1), dilation=(1, 2), groups=2, size=(5, 4)),
    "conv wide unequal": conv(64, 128, (3, 2), padding=(1, 0), stride=(2, 1), dilation=(1, 2), groups=2, size=(4, 4)),
    "conv wide 1x1": conv(24, 32, 1, size=(2, 2)),
    "conv direct": conv(8, 8, 5, stride=5, size=(10, 5)),
    "depthwise": conv(4, 4, 3, groups=4, padding="same", padding_mode="circular"),
    "conv1d": conv(3, 5, 4, stride=2, padding=1, size=(9,), kind=nn.Conv1d),
    "conv3d": conv(2, 3, (3, 1, 3), padding="same", size=(3, 4, 3), kind=nn.Conv3d),
    "transposed": conv(3, 2, 3, stride=2, kind=nn.ConvTranspose2d),
    "text": lambda: (Text(), torch.tensor([[1, 2, 2, 1], [0, 0, 3, 3], [4, 5, 6, 1], [1, 1, 1, 1], [0, 0, 0, 0]])),
    "custom": lambda: (Custom(), torch.randn(B, 7, 4)),
    "attention": lambda: (Attention(), torch.randn(B, 6, 8)),
    "twice": lambda: (Twice(), torch.randn(B, 4, 6, 6)),
    "frozen": frozen,
    "batch norm in eval mode": batch_norm,
    "vit": vit,
    "bert": bert,
    "llama": llama,
}


def logits(model, x):
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    y = torch.arange(B) % 3
    training = [module.training for module in model.modules()]
    model.to(dtype)
    for module, mode in zip(model.modules(), training):
        module.training = mode
    return model, x.to(dtype) if x.is_floating_point() else x, y


def slow(model, x, y):
    """Every sample's gradient by its own forward and backward: (B, all trainable parameters)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = []
    for i in range(len(x)):
        loss = F.cross_entropy(logits(model, x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        out.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, grads)]))
    return torch.stack(out)


def gradient(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])


def recorded(gradients, model, x, y):
    with gradients.record(len(x)):
        out = logits(model, x)
    return F.cross_entropy(out, y, reduction="none")


@every_row("tight", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_equals_a_loop_over_samples(name, tight, monkeypatch):
    if tight:
        monkeypatch.setattr(ghost_norms, "TRANSIENT_BYTES", 1)
    model, x, y = make(name)
    expected = slow(model, x, y)
    gradients, state = SampleGradients(model), [set(module.__dict__) for module in model.modules()]
    weights = torch.tensor([0.3, 0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    for step in (1, 2):  # twice: the second accumulates, without the first batch's check
        losses = recorded(gradients, model, x, y)
        torch.testing.assert_close(gradients.norms(losses), expected.norm(dim=1), rtol=1e-6, atol=1e-12)
        loss = gradients.loss(losses, weights)
        torch.testing.assert_close(loss, (weights * losses).sum().detach())
        loss.backward()
        torch.testing.assert_close(gradient(model), step * weights @ expected, rtol=1e-6, atol=1e-10)
    assert state == [set(module.__dict__) for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_row("name", MODELS)
def test_single_precision(name):
    model, x, y = make(name)
    expected = slow(model, x, y)
    model, x, y = make(name, torch.float32)
    gradients = SampleGradients(model)
    losses = recorded(gradients, model, x, y)
    norms = gradients.norms(losses)
    assert norms.dtype == torch.float32 and not norms.requires_grad
    torch.testing.assert_close(norms.double(), expected.norm(dim=1), rtol=1e-4, atol=1e-6)
    gradients.loss(losses, torch.ones(B)).backward()
    torch.testing.assert_close(gradient(model).double(), expected.sum(0), rtol=1e-3, atol=1e-4)


@every_row("name", ["vit", "conv wide", "text", "custom"])
def test_autocast(name):
    model, x, y = make(name, torch.float32)
    expected = slow(model, x, y)
    gradients = SampleGradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = recorded(gradients, model, x, y)
        norms = gradients.norms(losses)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=0.1, atol=1e-3)
    gradients.loss(losses, torch.ones(B)).backward()
    assert (gradient(model) - expected.sum(0)).norm() < 0.1 * expected.sum(0).norm()


@pytest.mark.parametrize("name", ["conv", "conv wide", "positions", "custom", "vit"])
def test_a_sample_without_a_finite_loss_leaves_the_others_alone(name):
    model, x, y = make(name)
    expected = slow(model, x, y)
    x[2] = float("nan")
    gradients = SampleGradients(model)
    losses = recorded(gradients, model, x, y)
    norms = gradients.norms(losses)
    others = torch.tensor([0, 1, 3, 4])
    assert not norms[2].isfinite()
    torch.testing.assert_close(norms[others], expected.norm(dim=1)[others], rtol=1e-6, atol=1e-12)
    loss = gradients.loss(losses, torch.tensor([1.0, 1, 0, 1, 1]))
    loss.backward()
    assert loss.isfinite()
    torch.testing.assert_close(gradient(model), expected[others].sum(0), rtol=1e-6, atol=1e-10)


def test_loss_alone_and_scaled():
    model, x, y = make("conv")
    gradients = SampleGradients(model)
    loss = gradients.loss(recorded(gradients, model, x, y), torch.ones(B))
    (8 * loss).backward()
    torch.testing.assert_close(gradient(model), 8 * slow(model, x, y).sum(0))
    with pytest.raises(ValueError, match="ran before"):
        loss.backward()


def test_a_failed_forward_leaves_no_trace():
    model, x, y = make("vit")
    gradients, state = SampleGradients(model), [set(module.__dict__) for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        with gradients.record(B):
            logits(model, x)
            raise ZeroDivisionError
    assert state == [set(module.__dict__) for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no recorded forward"):
        gradients.norms(torch.zeros(B))


class Lambda(nn.Module):
    """A linear layer inside any function."""

    def __init__(self, function, **layers):
        super().__init__()
        self.inner, self.function = nn.Linear(3, 3), function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def tied():
    model = Lambda(lambda m, x: m.other(m.inner(x)), other=nn.Linear(3, 3))
    model.other.weight = model.inner.weight
    return model


def checkpointing():
    model = vit()[0].train()
    model.vit.layers[1].gradient_checkpointing = True
    return model


def chain(*layers):
    return lambda: nn.Sequential(*layers)


REFUSED_AT_ONCE = {
    "batch norm": (chain(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"1 \(BatchNorm1d\) .* mixes .* resnet32-gn\), or method prl"),
    "frozen batch norm": (chain(nn.Linear(3, 3), nn.BatchNorm1d(3).requires_grad_(False)), r"1 \(BatchNorm1d\)"),
    "instance norm": (chain(nn.InstanceNorm1d(3, track_running_stats=True), nn.Linear(3, 3)), r"0 \(InstanceNorm1d\)"),
    "tied": (tied, "other.weight is the same parameter as inner.weight"),
    "frequencies": (chain(nn.Embedding(3, 3, scale_grad_by_freq=True)), r"0 \(Embedding\)"),
    "nothing to train": (lambda: nn.Linear(3, 3).requires_grad_(False), "no parameter"),
    "checkpointing": (checkpointing, r"vit.layers.1 \(ViTLayer\) has gradient_checkpointing"),
}
REFUSED_IN_USE = {
    "never called": (Lambda(lambda m, x: F.linear(x, m.inner.weight) + m.inner.bias), r"never called inner \(Linear\), whose"),
    "used twice": (Lambda(lambda m, x: m.inner(x) @ m.inner.weight), "gradient of inner.weight"),
    "sequence first": (Lambda(lambda m, x: m.inner(x.expand(2, B, 3))[0]), r"inner \(Linear\) got an input .* \(2, 5, 3\)"),
    "sample lost": (Lambda(lambda m, x: m.norm(m.inner(x)), norm=nn.LayerNorm((B, 3))), r"norm \(LayerNorm\) got an input"),
    "mixed": (Lambda(lambda m, x: (h := m.inner(x)) - h.mean(0).sin()), r"influence each other behind inner \(Linear\)"),
    "row missed": (Lambda(lambda m, x: m.inner(x) + m.p[0, 0], p=nn.Parameter(torch.randn(1, 1, 3))), "influence each other"),
    "no gradients": (Lambda(lambda m, x: checkpoint(m.inner, x.requires_grad_(), use_reentrant=True)), "ran without gradients"),
    "recomputed": (Lambda(lambda m, x: checkpoint(m.inner, x, use_reentrant=False)), "gradient checkpointing"),
    "lstm": (
        Lambda(lambda m, x: m.lstm(m.inner(x)[:, None])[0][:, 0], lstm=nn.LSTM(3, 3, batch_first=True)),
        r"lstm \(LSTM\) gave an output of shape \(1, 5, 3\)",
    ),
    "dropout": (
        Lambda(lambda m, x: m.mha(*[m.inner(x)[:, None]] * 3)[0][:, 0], mha=nn.MultiheadAttention(3, 1, 0.5, batch_first=True)),
        r"mha \(MultiheadAttention\) cannot be replayed",
    ),
    "another forward": (Lambda(lambda m, x: (m.inner(x), torch.zeros(B, 3, requires_grad=True))[1]), "do not come from"),
}


@every_row("name", REFUSED_AT_ONCE)
def test_refused_at_once(name):
    make_it, match = REFUSED_AT_ONCE[name]
    with pytest.raises(ValueError, match=match) as error:
        SampleGradients(make_it())
    assert "\n" not in str(error.value)


@every_row("name", REFUSED_IN_USE)
def test_refused_in_use(name):
    model, match = REFUSED_IN_USE[name]
    gradients = SampleGradients(model)
    with pytest.raises(ValueError, match=match) as error:
        gradients.norms(recorded(gradients, model, torch.randn(B, 3), torch.arange(B) % 3))
    assert "\n" not in str(error.value)


def test_a_mask_as_long_as_the_batch_is_not_taken_for_samples():
    """A (T, T) mask of a replayed module looks like samples where T is B; the check of the first such batch notices."""
    torch.manual_seed(0)
    attention, head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)
    model = nn.Sequential(attention, head)
    mask = torch.randn(B, B)
    gradients = SampleGradients(model)
    for batch in (B + 1, B):
        x, y = torch.randn(batch, B, 4), torch.arange(batch) % 3
        with gradients.record(batch):
            out = head(attention(x, x, x, attn_mask=mask)[0].mean(1))
        losses = F.cross_entropy(out, y, reduction="none")
        if batch == B:
            with pytest.raises(ValueError):
                gradients.norms(losses)
        else:
            gradients.norms(losses)


def test_batches_of_other_sizes():
    model, x, y = make("vit")
    expected = slow(model, x, y)
    gradients = SampleGradients(model)
    for batch in (B, 2, 1, B):
        losses = recorded(gradients, model, x[:batch], y[:batch])
        torch.testing.assert_close(gradients.norms(losses), expected[:batch].norm(dim=1))
        model.zero_grad()
        gradients.loss(losses, torch.ones(batch)).backward()
        torch.testing.assert_close(gradient(model), expected[:batch].sum(0))


def test_wrong_shapes_are_refused():
    model, x, y = make("mlp")
    gradients = SampleGradients(model)
    losses = recorded(gradients, model, x, y)
    with pytest.raises(ValueError, match=r"losses of shape \(\)"):
        gradients.norms(losses.mean())
    with pytest.raises(ValueError, match=r"weights of shape \(2,\)"):
        gradients.loss(losses, torch.ones(2))
