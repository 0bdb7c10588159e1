"""Which layer the classes come from, and training it alone: everything else bit for bit as it was."""

import copy

import pytest
import torch
from helpers.tables import every_row
from helpers.toy import CHANNELS, CLASSES, SIZE, curve, images, logits_module, resnet, robust, settings, vit
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.callbacks.spectral_cap import spectral_norms
from robust_trainer.methods.table import attacking, get_method
from robust_trainer.models.heads import LinearProbe, head_of, heads_of
from robust_trainer.models.peers import PeerModel, make_peers
from robust_trainer.models.spectral import Cap
from robust_trainer.models.zoo import SMALL

#: A row per kind of rule, the names made on the fly among them; and each kind of model.
TRAINED = [
    (None, "vit"), (None, "resnet"), ("gce-simclr-sn", "module"), ("prl-simclr-sn", "vit"), ("prl-simclr", "resnet"),
    *((name, "noisy") for name in ("bootstrap-simclr", "co-prl-simclr", "rca-simclr", "decouple-simclr", "prl-g-simclr",
                                   "ignormclip-simclr-sn", "min-sgd-simclr", "rebalanced-simclr")),
]  # fmt: skip


def distilbert(**kwargs):
    torch.manual_seed(0)
    config = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=20, max_position_embeddings=8, **kwargs)
    return DistilBertForSequenceClassification(config)


class Noisy(nn.Module):
    """BatchNorm, and dropout both as a module and as a function of the root's own mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(CHANNELS, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.head = nn.Linear(24, CLASSES)
        self.heard = []

    def features(self, pixel_values):
        h = self.drop(self.norm(self.conv(pixel_values)).relu())
        return nn.functional.dropout(nn.functional.adaptive_avg_pool2d(h, 2).flatten(1), 0.5, self.training)

    def forward(self, pixel_values):
        self.heard.append((self.training, self.norm.training, self.drop.training, self.head.training))
        return self.head(self.features(pixel_values))


def noisy():
    torch.manual_seed(0)
    return Noisy()


MODELS = {"module": logits_module, "vit": lambda: vit(0.3), "resnet": resnet, "noisy": noisy}


def in_head(name, model):
    return any(name in (f"{m}.weight", f"{m}.bias") for m in names_of_heads(model))


def names_of_heads(model):
    heads = {id(h) for h in heads_of(model)}
    return [name for name, module in model.named_modules() if id(module) in heads]


# ---- which layer -----------------------------------------------------------------------------------------------------


@every_row("name", SMALL)
def test_the_small_models(name):
    config, model = SMALL[name]
    built = model(config(num_channels=CHANNELS, image_size=SIZE, num_labels=CLASSES))
    assert head_of(built) is built.head
    assert head_of(model(config(num_channels=CHANNELS, image_size=SIZE))).out_features == 2  # labels not named: the default


def test_transformers_models_and_wrappers():
    v, r = vit(), resnet()
    assert head_of(v) is v.classifier and head_of(r) is r.classifier[1]
    text = distilbert(num_labels=3)
    assert head_of(text) is text.classifier
    assert head_of(distilbert()).out_features == 2
    narrow = distilbert(num_labels=8)  # the layer before it is as wide
    assert head_of(narrow) is narrow.classifier and narrow.pre_classifier.out_features == 8

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    assert head_of(Wrapper(v)) is v.classifier


def test_bare_modules():
    model = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5))
    assert head_of(model) is model[2]
    assert head_of(nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(7))).out_features == 7
    alone = nn.Linear(2, 3)
    assert head_of(alone) is alone


def test_inside_peft():
    peft = pytest.importorskip("peft")
    saved = peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"]))
    head = head_of(saved)
    assert head is saved.base_model.model.classifier.modules_to_save["default"] and head.weight.requires_grad
    saved.add_adapter("later", peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"]))
    assert head_of(saved) is head  # the active adapter's
    adapted = peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["classifier"]))
    assert head_of(adapted) is adapted.base_model.model.classifier.base_layer  # not lora_B, which is as wide
    with pytest.raises(ValueError, match="the head of PeftModel is frozen.*modules_to_save") as caught:
        LinearProbe(adapted)
    assert "\n" not in str(caught.value)


def test_peers():
    model = PeerModel.of([vit(), vit()])
    assert heads_of(model) == [peer.classifier for peer in model.peers] and heads_of(v := vit()) == [v.classifier]
    with pytest.raises(ValueError, match="PeerModel of 2 networks.*heads_of"):
        head_of(model)


def test_no_head():
    conv = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(ValueError, match="model has no linear layer at all: Sequential has linear layers of no outputs") as one:
        head_of(conv)
    other = vit()
    other.classifier = nn.Conv1d(16, 4, 1)
    with pytest.raises(ValueError, match=r"no linear layer of 4 outputs: ViTForImageClassification.*of \[16, 24\] outputs") as two:
        head_of(other)
    assert "\n" not in str(one.value) + str(two.value)


# ---- the head alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method,model", TRAINED)
def test_only_the_head_moves(tmp_path, method, model):
    given = dict(freeze_backbone=True) if method is None else {}
    trainer = robust(tmp_path, MODELS[model](), method=method, max_steps=4, weight_decay=0.1, **given)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(in_head(name, trainer.model) for name in changed), changed
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert all(m.training for m in trainer.model.modules())  # as after any training
    if method is not None and method.endswith("-sn"):
        assert max(spectral_norms(trainer.model).values()) <= 1.0 + 1e-5


@pytest.mark.parametrize("method", ["prl-at", "erat", "nrat-awp", "co-prl", "prl-at-memory"])
def test_the_backbone_is_in_evaluation_mode_in_every_forward(tmp_path, method):
    """InnerMaximization, scoring, probing and training forwards; and between evaluations."""
    given = dict(steps=2) if METHODS.get(method, get_method(method)).settings.get("steps", 1) > 1 else {}
    if method == "erat":
        given["warmup_epochs"] = 0.0
    trainer = robust(
        tmp_path, noisy(), method=method, freeze_backbone=True, max_steps=4, gradient_accumulation_steps=2, eval_strategy="steps",
        eval_steps=2, trainer={"eval_dataset": images(8, seed=1)}, **given,
    )  # fmt: skip
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    for net in trainer.model.peers if isinstance(trainer.model, PeerModel) else [trainer.model]:
        assert not any(any(modes[:3]) for modes in net.heard) and any(modes[3] for modes in net.heard)
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all(in_head(name, trainer.model) for name in changed)


@pytest.mark.parametrize("how", ["module", "function"])
def test_dropout_of_the_backbone_draws_nothing(tmp_path, how):
    curves = []
    for rate in (0.0, 0.5):
        model = noisy()
        if how == "module":
            model.drop.p = rate
            model.features = lambda x, m=model: m.drop(nn.functional.adaptive_avg_pool2d(m.norm(m.conv(x)), 2)).flatten(1)
        trainer = robust(tmp_path, model, method="prl-simclr", max_steps=4)
        trainer.train()
        curves.append(curve(trainer))
    assert curves[0] == curves[1]


def test_prl_on_precomputed_features_is_the_same_head(tmp_path):
    """Algorithm 7's loop by hand: h(x) once, in evaluation mode; keep the smallest ||softmax - y||; SGD; truncate by SVD."""
    rate, lr, k, size, data = 0.25, 0.5, 0.3, 128, images(384)  # smaller batches are ranked among earlier ones
    trainer = robust(
        tmp_path, noisy(), data, method="prl-simclr-sn", noise_rate=rate, drop_schedule="constant", spectral_cap=k,
        optim="sgd", learning_rate=lr, max_grad_norm=0.0, per_device_train_batch_size=size, num_train_epochs=4,
    )  # fmt: skip
    net = copy.deepcopy(trainer.model).eval()
    with torch.no_grad():
        h = net.features(torch.stack(list(data["pixel_values"])))
    y, order = torch.as_tensor(data["labels"][:]), []
    own = trainer.training_step
    trainer.training_step = lambda m, inputs, *a: (order.append(inputs["_robust_index"].clone()), own(m, inputs, *a))[1]
    trainer.train()
    w, b, owed = net.head.weight.detach().clone(), net.head.bias.detach().clone(), 0.0
    for rows in order:
        logits = torch.stack([w @ h[i] + b for i in rows])
        error = torch.softmax(logits, 1) - torch.eye(CLASSES)[y[rows]]
        asked = (1 - rate) * len(rows) + owed
        keep = int(asked + 1e-4)
        owed = asked - keep
        scores = [float(row.norm()) for row in error]
        kept = sorted(range(len(rows)), key=lambda i: scores[i])[:keep]
        assert min(s for i, s in enumerate(scores) if i not in kept) - max(scores[i] for i in kept) > 1e-6  # no tie
        w = w - lr * sum(torch.outer(error[i], h[rows[i]]) for i in kept) / keep
        b = b - lr * sum(error[i] for i in kept) / keep
        w = w / max(float(torch.linalg.svdvals(w)[0]) / k, 1.0)
    assert len(order) == 12
    assert torch.allclose(trainer.model.head.weight, w, atol=2e-5) and torch.allclose(trainer.model.head.bias, b, atol=2e-5)
    assert float(torch.linalg.svdvals(w)[0]) > 0.99 * k  # the cap held


def test_without_a_method_it_is_a_plain_trainer_on_a_frozen_model(tmp_path):
    ours = robust(tmp_path, resnet(), freeze_backbone=True)
    ours.train()
    model = resnet()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)

    class Frozen(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            model.eval()
            return super().compute_loss(model, inputs, **kwargs)

    plain = Frozen(model, TrainingArguments(**settings(tmp_path)), train_dataset=images())
    plain.train()
    assert curve(ours) == curve(plain)
    assert all(torch.equal(v, plain.model.state_dict()[n]) for n, v in ours.model.state_dict().items())
    assert sum(p.numel() for g in ours.optimizer.param_groups for p in g["params"]) == 13 * CLASSES


def test_what_was_frozen_stays_frozen_and_all_is_restored_after_an_error(tmp_path):
    model = vit()
    model.vit.embeddings.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            assert [p.requires_grad for p in model.parameters()] == [p is model.classifier.weight or p is model.classifier.bias
                                                                     for p in model.parameters()]  # fmt: skip
            raise RuntimeError("stop")

    trainer = robust(tmp_path, model, method="prl-simclr-sn", trainer={"callbacks": [Stop()]})
    handlers = len(trainer.callback_handler.callbacks)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    assert [p.requires_grad for p in model.parameters()] == flags and trainer._linear_probe is None
    assert all(m.training for m in model.modules())
    assert len(trainer.callback_handler.callbacks) == handlers


def test_a_head_that_is_frozen_or_missing_is_told(tmp_path):
    model = vit()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="freeze_backbone=True but the head of ViTForImageClassification is frozen"):
        robust(tmp_path, model, method="prl-simclr").train()
    with pytest.raises(ValueError, match="model has no linear layer at all"):
        robust(tmp_path, nn.Sequential(nn.Conv2d(CHANNELS, 4, 8), nn.Flatten()), method="prl-simclr").train()


def test_peers_share_the_backbone_they_were_given(tmp_path):
    """Built from a config or not: a pre-trained backbone is not thrown away for a fresh one."""
    trainer = robust(tmp_path, vit(), method="co-prl-simclr", max_steps=3)
    one, two = (dict(peer.named_parameters()) for peer in trainer.model.peers)
    for name in one:
        assert torch.equal(one[name], two[name]) == (not name.startswith("classifier.")), name
        assert one[name] is not two[name]
    assert all(torch.equal(p, one[n]) for n, p in vit().named_parameters())
    trainer.train()
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])
    fresh = make_peers(vit(), 2, seed=0)
    assert (fresh.peers[0].vit.layers[0].mlp.fc1.weight != fresh.peers[1].vit.layers[0].mlp.fc1.weight).any()


def test_text(tmp_path):
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(1, 20, (6,)), "labels": i % 3} for i in range(16)]
    args = RobustConfig(**settings(tmp_path, method="co-prl-simclr-sn", max_steps=3))
    trainer = RobustTrainer(distilbert(num_labels=3), args, train_dataset=data)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, v in trainer.model.state_dict().items() if not torch.equal(v, before[name])}
    assert changed == {f"peers.{i}.classifier.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


# ---- the rows --------------------------------------------------------------------------------------------------------


def test_the_rows_of_algorithm_7():
    frozen, capped = METHODS["prl-simclr"], METHODS["prl-simclr-sn"]
    assert frozen.settings == {**METHODS["prl"].settings, "freeze_backbone": True}
    assert capped.settings == {**frozen.settings, "spectral_cap": 1.0, "spectral_layers": "last"}
    assert capped.source == "Dissertation Algorithm 7"
    assert frozen.source == "Dissertation Algorithm 7, without spectral normalisation (table 5.3)"
    assert (frozen().freeze_backbone, frozen().spectral, capped().spectral) == (True, None, Cap(1.0, "last"))
    assert get_method("prl-simclr") is frozen and get_method("prl-simclr-sn") is capped
    assert frozen(freeze_backbone=False).freeze_backbone is False and METHODS["prl-at"](freeze_backbone=True).freeze_backbone


@every_row("name", [name for name, row in METHODS.items() if "eps" not in row.settings and "simclr" not in name])
def test_every_row_without_an_attack_has_them(tmp_path, name):
    row = METHODS[name]
    for ending, more in (("-simclr", {}), ("-simclr-sn", {"spectral_cap": 1.0, "spectral_layers": "last"})):
        made = get_method(f"{name}{ending}")
        assert made.name == made().name == f"{name}{ending}" and made.settings == {**row.settings, "freeze_backbone": True, **more}
        ours, alone = made(), row()
        assert ours.freeze_backbone and (ours.spectral == Cap(1.0)) == bool(more)
        assert (ours.objective, ours.selection, ours.relabel, ours.num_networks) == (
            alone.objective, alone.selection, alone.relabel, alone.num_networks,
        )  # fmt: skip
        assert RobustConfig(output_dir=str(tmp_path), method=f"{name}{ending}").recipe().name == f"{name}{ending}"
    assert (row().relabel is not None) == (name == "bootstrap")


@every_row(
    "name,told",
    [
        ("prl-at-simclr", "'prl-at' does not combine with -simclr: choose one of standard, auto, mae"),
        ("bootstrap-at-simclr-sn", "'bootstrap-at' does not combine with -simclr-sn"),
        ("nrat-simclr-sn", "'nrat' does not combine with -simclr-sn"),
        ("erat-simclr", "'erat' does not combine"),
        ("prl+trades-simclr", r"'prl\+trades' does not combine"),
        ("prl-simclr+trades", "'prl-simclr' does not combine"),
        ("prl-simclr-simclr", "'prl-simclr' does not combine with -simclr"),
        ("prll-simclr-sn", "unknown method 'prll-simclr-sn': did you mean 'prl-simclr-sn'"),
        ("xyzzy-simclr", "unknown method 'xyzzy-simclr': give -simclr after one of standard"),
        ("-simclr", "unknown method '-simclr'"),
        ("simclr", "unknown method 'simclr': "),
        ("prl-simcl", "unknown method 'prl-simcl': did you mean 'prl-simclr'"),
    ],
)
def test_names_that_make_no_sense_are_told_in_one_line(tmp_path, name, told):
    with pytest.raises(ValueError, match=told) as caught:
        RobustConfig(output_dir=str(tmp_path), method=name)
    assert "\n" not in str(caught.value)


def test_the_attacking_names_are_as_they_were():
    assert "at" in attacking() and not any("simclr" in name or "bootstrap" in name for name in attacking())


def test_the_command_line_takes_them(tmp_path):
    from transformers import HfArgumentParser

    layers = ["--method_settings", '{"spectral_layers": "all"}']
    words = ["--output_dir", str(tmp_path), "--freeze_backbone", "true", "--spectral_cap", "2.5", *layers]
    (parsed,) = HfArgumentParser(RobustConfig).parse_args_into_dataclasses(words)
    assert parsed.recipe() is None and parsed.switches() == (True, Cap(2.5, "all"))
