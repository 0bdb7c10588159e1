"""Adversarial training of text models: what the hook on the word embeddings does, against plain forwards on inputs_embeds."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from helpers.text import CLASSES, CONFIGS, WIDTH, WORDS, net, padded, sentences
from helpers.toy import config, settings
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    T5Config,
)

from robust_trainer import RobustTrainer
from robust_trainer.data.randomness import RowDraws
from robust_trainer.models.peers import PeerModel
from robust_trainer.perturbations.inputs import EmbeddingAdapter
from robust_trainer.step.records import MicroBatch

LR, SEED = 0.05, 3


def trainer_of(tmp_path, model=None, kind=RobustTrainer, data=None, evaluated=None, **kwargs):
    base = settings(
        tmp_path, max_steps=3, max_grad_norm=0.0, train_sampling_strategy="sequential", seed=SEED, learning_rate=LR, optim="sgd"
    )
    args = config(**{**base, **kwargs})
    model = net() if model is None else model
    data = sentences() if data is None else data
    return kind(model=model, args=args, train_dataset=data, eval_dataset=evaluated, data_collator=padded)


def trained(*args, **kwargs):
    trainer = trainer_of(*args, **kwargs)
    trainer.train()
    return trainer


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


# ---- the front --------------------------------------------------------------------------------------------------------


def by_embeddings(kind, model, inputs, given):
    """The logits at word embeddings ``given``, without hooks; for decoders the last word's, found by hand."""
    mask = inputs["attention_mask"]
    if kind not in ("gpt2", "llama"):
        return model(inputs_embeds=given, attention_mask=mask).logits
    hidden = model.base_model(inputs_embeds=given, attention_mask=mask).last_hidden_state
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)
    return model.score(hidden[range(len(mask)), last])


@every_row("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind,side", [*((k, "right") for k in CONFIGS), ("gpt2", "left"), ("llama", "left")])
def test_the_hook_is_a_forward_on_moved_embeddings(kind, side, norm):
    """Logits, and the gradients of the word embeddings' weights, of all others and of the perturbation."""
    model = net(kind).eval()
    inputs = padded(sentences(6), side)
    labels = inputs.pop("labels")
    assert inputs["attention_mask"].sum() < inputs["attention_mask"].numel()
    table = model.get_input_embeddings()
    width = table.weight.shape[1]
    front = EmbeddingAdapter.of([model])
    x, space = front.join([MicroBatch(inputs, labels, None)], norm)
    delta = torch.randn(*inputs["input_ids"].shape, width, generator=torch.Generator().manual_seed(1)) * 0.3
    unit = table.weight.detach().pow(2).sum(1).sqrt().mean() / (1 if norm == "l2" else width**0.5)
    plain = (delta * unit * inputs["attention_mask"].unsqueeze(-1)).double().requires_grad_(True)
    moved = space.add(x, delta).requires_grad_(True)

    expected = by_embeddings(kind, model, inputs, table(inputs["input_ids"]) + plain)
    F.cross_entropy(expected, labels).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    found = front.forward(lambda given: model(**given), inputs, moved).logits
    F.cross_entropy(found, labels).backward()
    still = model(**inputs).logits

    assert (found - expected).abs().max() < 1e-6
    assert (found - still).abs().max() > 1e-3  # the perturbation matters, and is gone afterwards
    assert (moved.grad - plain.grad).abs().max() < 1e-6 and plain.grad.abs().max() > 1e-4
    for name, p in model.named_parameters():
        if gradients[name] is not None:
            assert (p.grad - gradients[name]).abs().max() < 1e-6, name
    assert table.weight.grad.abs().max() > 1e-4
    assert not table._forward_hooks


# ---- training against a plain loop --------------------------------------------------------------------------------------


def divergence(p, q):
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def reference(method, norm, eps, step_size, steps, uniform, beta=4.0, updates=3, size=8):
    """PGD on inputs_embeds in units of the mean embedding norm at the start, then plain SGD."""
    model, data = net(), sentences()
    table = model.get_input_embeddings()
    unit = float(table.weight.detach().norm(dim=1).mean()) / (1 if norm == "l2" else WIDTH**0.5)
    for update in range(updates):
        inputs = padded([data[(update * size + i) % len(data)] for i in range(size)])
        ids, mask, y = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        real = mask.unsqueeze(-1)
        model.eval()

        def logits(delta, ids=ids, mask=mask, real=real):
            return model(inputs_embeds=table(ids) + (delta * unit * real).double(), attention_mask=mask).logits

        delta = torch.zeros(*ids.shape, WIDTH)
        if uniform:
            draws = RowDraws(torch.arange(size), "random start", SEED, update)  # the library's numbers, drawn again
            if norm == "linf":
                delta = (draws.uniform(*delta.shape[1:]) * 2 - 1) * eps
            else:
                noise, radius = draws.normal(*delta.shape[1:]), draws.uniform(ids.shape[1], 1)
                delta = noise / noise.norm(dim=-1, keepdim=True) * radius * eps
            delta = delta * real
        for _ in range(steps):
            delta = delta.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(logits(delta), y, reduction="sum"), delta)
            with torch.no_grad():
                if norm == "linf":
                    delta = (delta + step_size * g.sign()).clamp(-eps, eps)
                else:
                    for b in range(len(ids)):
                        for t in range(ids.shape[1]):  # a ball for each word
                            if g[b, t].norm() > 0:
                                delta[b, t] += step_size * g[b, t] / g[b, t].norm()
                            if delta[b, t].norm() > eps:
                                delta[b, t] *= eps / delta[b, t].norm()
        model.train()
        model.zero_grad()
        z, w = logits(torch.zeros_like(delta)), logits(delta.detach())
        loss = F.cross_entropy(w, y) if method == "pgd-at" else F.cross_entropy(z, y) + beta * divergence(z, w).mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= LR * p.grad
    return model


@pytest.mark.parametrize(
    "method,norm,uniform", [("pgd-at", "linf", True), ("pgd-at", "l2", False), ("trades", "linf", False), ("trades", "l2", True)]
)
def test_training_is_the_plain_loop(tmp_path, method, norm, uniform):
    ball = dict(norm=norm, eps=0.5, step_size=0.2, steps=3)
    more = {} if method == "pgd-at" else {"beta": 4.0}
    ours = trained(tmp_path, method=method, inner_loss="ce", random_start=uniform, start_std="uniform", **ball, **more).model
    plain = reference(method, uniform=uniform, **ball)
    assert distance(ours, plain) < (1e-9 if norm == "linf" else 1e-6)
    assert distance(ours, reference(method, uniform=uniform, **{**ball, "eps": 0.25})) > 1e-5


# ---- what is trained on ---------------------------------------------------------------------------------------------------


def watch_deltas(model, found):
    """Notes (delta, mask) of BERT's training forwards, from what its embeddings' LayerNorm is given."""
    parts, state = model.bert.embeddings, {}

    def seen(module, args, kwargs):
        state.update(kwargs)

    def measured(module, args):
        if model.training:
            ids = state["input_ids"]
            rest = parts.position_embeddings.weight[: ids.shape[1]] + parts.token_type_embeddings.weight[0]
            delta = args[0] - parts.word_embeddings.weight[ids] - rest
            found.append((delta.detach(), state["attention_mask"]))

    model.register_forward_pre_hook(seen, with_kwargs=True)
    parts.LayerNorm.register_forward_pre_hook(measured)


@pytest.mark.parametrize("method,steps,norm", [("pgd-at", 3, "linf"), ("trades", 3, "l2"), ("fast-at", 1, "linf")])
def test_words_stay_in_their_balls_and_padding_where_it_is(tmp_path, method, steps, norm):
    model, found, eps = net(), [], 0.25
    size = model.bert.embeddings.word_embeddings.weight.detach().norm(dim=1).mean().item()
    bound = eps * size if norm == "l2" else eps * size / WIDTH**0.5
    watch_deltas(model, found)
    trained(tmp_path, model, method=method, eps=eps, step_size=0.2, steps=steps, norm=norm, objective="ce")
    assert len(found) == (6 if method == "trades" else 3)
    for number, (delta, mask) in enumerate(found):
        reach = delta.norm(dim=-1) if norm == "l2" else delta.abs().amax(-1)
        if method == "trades" and number % 2 == 0:
            assert reach.max() < 1e-12  # the forward on the words as they are
            continue
        assert mask.min() == 0 and reach[mask == 0].max() < 1e-12
        assert reach[mask == 1].max() <= bound * (1 + 1e-5) and reach[mask == 1].max() > 0.9 * bound


@pytest.mark.parametrize("method,norm", [("pgd-at", "l2"), ("nrat-awp", "linf"), ("prl+mart", "l2")])
def test_accumulation_is_a_larger_batch_whatever_the_padding(tmp_path, method, norm):
    extra = {"noise_rate": 0.25, "drop_schedule": "constant"} if "+" in method else {}
    if method.endswith("awp"):
        extra = {"awp_gamma": 0.02}
    ends = []
    for size, micro in ((8, 1), (2, 4)):
        cut = dict(per_device_train_batch_size=size, gradient_accumulation_steps=micro)
        ends.append(trained(tmp_path, method=method, eps=0.5, step_size=0.2, steps=3, norm=norm, **cut, **extra).model)
    lengths = [max(len(row["input_ids"]) for row in sentences()[i : i + 2]) for i in range(0, 8, 2)]
    assert len(set(lengths)) > 1  # the micro-batches were padded differently
    assert distance(*ends) < 1e-6 and distance(ends[0], net()) > 1e-4


# ---- no traces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, "attack", "training"])
def test_no_hook_is_left(tmp_path, fails):
    model = net()
    trainer = trainer_of(tmp_path, model, method="trades", eps=0.5, steps=2)

    def fail(module, *_):
        if module.training == (fails == "training"):
            raise ZeroDivisionError("in the forward")

    if fails is None:
        trainer.train()
    else:
        handle = model.bert.encoder.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
        handle.remove()
    assert model.training or fails is None  # not left in the attack's eval mode
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


class Watched(RobustTrainer):
    """Checks after every step that the weights are, bit for bit, those before it."""

    steps = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        before = [p.detach().clone() for p in model.parameters()]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.steps += all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
        return loss


def test_weight_perturbation_moves_the_words_too_and_restores_them(tmp_path):
    model, seen = net(), []
    start = model.get_input_embeddings().weight.detach().clone()
    model.get_input_embeddings().weight.register_hook(lambda grad: seen.append(model.get_input_embeddings().weight - start))
    trainer = trained(tmp_path, model, Watched, method="trades-awp", awp_gamma=0.1, eps=0.5, steps=2, learning_rate=0.0)
    assert trainer.steps == 3 and torch.equal(model.get_input_embeddings().weight, start)
    moved = [step.norm() / start.norm() for step in seen]
    assert sum(abs(size - 0.1) < 1e-6 for size in moved) >= 3


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dropout_is_off_inside_and_on_outside(tmp_path, mode):
    model, forwards = net(hidden_dropout_prob=0.3), []
    dropout = model.bert.embeddings.dropout
    dropout.register_forward_hook(lambda module, args, output: forwards.append(torch.equal(args[0], output)))
    trained(tmp_path, model, method="pgd-at", eps=0.5, steps=2, attack_mode=mode, max_steps=2, objective="ce")
    inside = [mode == "eval"] * 2
    assert forwards == [*inside, False] * 2


def test_evaluation_is_the_plain_one(tmp_path):
    """While training too, between two attacked steps."""
    data = sentences(12)
    trainer = trainer_of(tmp_path, method="trades", eps=0.5, steps=2, per_device_eval_batch_size=12)
    trainer.train()
    found = trainer.evaluate(data)["eval_loss"]
    inputs = padded(data)
    with torch.no_grad():
        plain = trainer.model.eval()(**inputs)
    assert found == pytest.approx(float(plain.loss), abs=1e-6)
    assert (torch.from_numpy(trainer.predict(data).predictions) - plain.logits).abs().max() < 1e-6
    other = trained(tmp_path, evaluated=data, method="trades", eps=0.5, steps=2, eval_strategy="steps", eval_steps=1)
    losses = [row["eval_loss"] for row in other.state.log_history if "eval_loss" in row]
    assert len(losses) == 3 and losses[-1] == pytest.approx(found, abs=1e-6)  # and training took no notice


# ---- the rows, and what the Trainer can switch on ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prl-at-memory", "fast-at-awp", "mart-awp", "prl+nrat", "co-prl+trades-awp"])
def test_every_attack_trains_a_text_model(tmp_path, method):
    trainer = trainer_of(tmp_path, method=method, eps=0.25, steps=1, step_size=0.2, max_steps=2)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 60 for loss in losses)
    models = list(trainer.model.peers) if isinstance(trainer.model, PeerModel) else [trainer.model]
    assert len(models) == (2 if method.startswith("co-") else 1)
    for model in models:
        assert all(p.isfinite().all() for p in model.parameters()) and distance(model, net()) > 1e-5
        assert not model.get_input_embeddings()._forward_hooks
    if len(models) == 2:
        assert distance(*models) > 1e-3


@pytest.mark.parametrize("kind", ["distilbert", "gpt2"])
def test_gradient_checkpointing_changes_nothing(tmp_path, kind):
    shared = dict(method="trades", eps=0.5, steps=2)
    ends = [trained(tmp_path, net(kind), activation_checkpointing=on, **shared).model for on in (False, True)]
    assert distance(*ends) < 1e-12 and distance(ends[0], net(kind)) > 1e-4


def test_half_precision(tmp_path):
    shared = dict(method="trades", eps=0.5, steps=2, inner_loss="ce", random_start=False)
    full = trained(tmp_path, net().float(), **shared)
    half = trained(tmp_path, net().float(), bf16=True, **shared)
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (full, half)]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


# ---- what is refused ----------------------------------------------------------------------------------------------------------


def encoder_decoder(kind):
    shared = dict(vocab_size=WORDS, num_labels=CLASSES, d_model=WIDTH, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    if kind == "t5":
        config = T5Config(d_kv=8, d_ff=24, num_layers=1, num_heads=2, **shared)
    else:
        config = BartConfig(
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
            decoder_ffn_dim=24, max_position_embeddings=16, bos_token_id=1, **shared,
        )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


REFUSED = {
    "at": (lambda: net(), dict(method="at"), "scope='batch' of method 'at'.*set scope='sample'"),
    "prl-at": (lambda: net(), dict(method="prl-at"), "scope='batch' of method 'prl-at'.*set scope='sample'"),
    "t5": (lambda: encoder_decoder("t5"), dict(method="trades"), "T5ForSequenceClassification embeds for an encoder and a decoder"),
    "bart": (lambda: encoder_decoder("bart"), dict(method="nrat"), "BartForSequenceClassification embeds for .* a decoder"),
    "compiled": (lambda: net(), dict(method="pgd-at", torch_compile=True), "method 'pgd-at'.* by a hook: switch torch_compile off"),
    "kl": (
        lambda: net(num_labels=1),
        dict(method="pgd-at", inner_loss="kl", problem_type="regression"),
        "inner_loss='kl' compares predicted classes, but problem_type='regression'",
    ),
    "pair": (lambda: net(num_labels=1), dict(method="trades"), "method 'trades'.*compares predicted classes.*use pgd-at"),
}


@every_row("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, case):
    make, given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as told:
        trained(tmp_path, make(), **given)
    assert "\n" not in str(told.value)


def test_the_mend_of_a_refused_scope_works(tmp_path):
    trained(tmp_path, method="at", scope="sample", max_steps=1)


def test_regression_is_attacked_on_its_own_loss(tmp_path):
    data = [{**row, "labels": row["labels"].double()} for row in sentences()]
    model, found = net(num_labels=1), []
    watch_deltas(model, found)
    trained(tmp_path, model, data=data, method="pgd-at", eps=0.5, steps=2, max_steps=2, objective="mse")
    assert len(found) == 2 and all(delta.abs().max() > 0 for delta, _ in found)
