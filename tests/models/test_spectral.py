"""The cap of spectral norms: against SVD, in any Trainer, through accumulation and resumption; and what it leaves alone."""

import copy
from unittest import mock

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from helpers.tables import every_row
from helpers.toy import CHANNELS, CLASSES, SIZE, config, curve, images, logits_module, resnet, robust, settings, vit
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.callbacks.spectral_cap import SpectralCap, capped_layers, spectral_norms
from robust_trainer.config import frozen_and_capped
from robust_trainer.models.peers import PeerModel
from robust_trainer.models.spectral import Cap, largest_singular_value

MODELS = {"module": logits_module, "vit": vit, "resnet": resnet}
K = 0.3


class Every(nn.Module):
    """One of each kind of layer that is capped, two that share a weight, and some that are not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.line = nn.Conv1d(4, 5, 3, padding=1)
        self.volume = nn.Conv3d(5, 3, (1, 1, 3))
        self.mix, self.again = nn.Linear(12, 12), nn.Linear(12, 12)
        self.again.weight = self.mix.weight
        self.table = nn.Embedding(3, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, pixel_values):
        h = self.norm(self.up(self.conv(pixel_values)))  # (B, 4, 16, 16)
        h = self.line(h.flatten(2))  # (B, 5, 256)
        h = self.volume(h.view(len(h), 5, 2, 2, 64)).mean(-1).flatten(1)  # (B, 12)
        return self.head(self.again(self.mix(h).relu()) + self.table(torch.zeros(len(h), dtype=torch.long)))


def sigma(layer):
    """Miyato's matrix written out: rows are outputs."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return float(torch.linalg.svdvals(weight.reshape(len(weight), -1))[0])


class Watch(TrainerCallback):
    """The largest norm after every step."""

    def __init__(self, layers):
        self.layers, self.norms = layers, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.norms.append(max(spectral_norms(model, self.layers).values()))


# ---- the norm --------------------------------------------------------------------------------------------------------


@every_row("rows,columns", [(1, 1), (4, 9), (9, 4), (40, 70), (130, 100)])
@every_row("spread", [0.0, 1e-4, 1e-3, 1e-2, 1.0])
def test_the_norm_is_the_largest_singular_value(rows, columns, spread):
    """Also where the singular values are nearly one, which few power iterations cannot tell apart."""
    g = torch.Generator().manual_seed(0)
    n = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=g, dtype=torch.float64))[0][:, :n]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=g, dtype=torch.float64))[0][:, :n]
    values = 3.0 * (1.0 - spread * torch.rand(n, generator=g, dtype=torch.float64))
    found = float(largest_singular_value(((left * values) @ right.T).float()))
    assert float(values.max()) * (1 - 1e-3) <= found <= float(values.max()) * (1 + 1e-6)


def test_the_norm_of_many_and_of_none():
    g = torch.Generator().manual_seed(0)
    many = torch.randn(3, 7, 5, generator=g) * torch.tensor([1.0, 1e20, 1e-8])[:, None, None]
    assert torch.allclose(largest_singular_value(many), torch.linalg.matrix_norm(many.double(), 2).float(), rtol=1e-5)
    assert float(largest_singular_value(torch.zeros(4, 3))) == 0.0
    for place in range(3):  # whichever column holds the longest direction
        assert float(largest_singular_value(2.0 * torch.eye(3)[[place]].T @ torch.eye(3)[[place]])) == 2.0
    ones = torch.eye(5).expand(2, 5, 5)
    assert torch.allclose(largest_singular_value(ones), torch.ones(2))


# ---- what is capped --------------------------------------------------------------------------------------------------


def test_which_layers():
    model = Every()
    assert list(capped_layers(model, "all")) == ["conv", "up", "line", "volume", "mix", "head"]  # the shared weight once
    assert list(capped_layers(model)) == list(capped_layers(model, "last")) == ["head"]
    model.mix.weight.requires_grad = False
    assert list(capped_layers(model, "all")) == ["conv", "up", "line", "volume", "head"]
    norms = spectral_norms(model, "all")
    assert norms == {name: pytest.approx(sigma(model.get_submodule(name)), rel=1e-5) for name in norms} and "mix" in norms


def test_what_a_parametrization_computes_is_left():
    model = logits_module()
    nn.utils.parametrizations.weight_norm(model.conv)
    assert list(capped_layers(model, "all")) == ["head"]


@every_row("k", [0.05, 0.5])
def test_one_projection_against_svd(k):
    model = Every()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    SpectralCap(k, "all").project(model)
    for name in capped_layers(model, "all"):
        weight, was = model.get_submodule(name).weight, before[f"{name}.weight"]
        norm = sigma(with_weight(model.get_submodule(name), was))
        if norm <= k:
            assert torch.equal(weight, was), name
        else:
            assert torch.allclose(weight, was * (k / norm), rtol=1e-4), name
    untouched = [n for n in before if n.split(".")[0] in ("norm", "table") or n.endswith("bias")]
    assert untouched and all(torch.equal(model.state_dict()[n], before[n]) for n in untouched)
    assert len({sigma(model.mix), sigma(model.again)}) == 1


def with_weight(layer, weight):
    other = copy.deepcopy(layer)
    other.weight = nn.Parameter(weight)
    return other


def test_a_layer_at_zero_stays_and_is_capped_once_it_grows():
    model, cap = nn.Sequential(nn.Linear(4, 3, bias=False)), SpectralCap(1.0)
    with torch.no_grad():
        model[0].weight.zero_()
        cap.project(model)
        assert not model[0].weight.any()
        model[0].weight.add_(5.0)
    cap.project(model)
    assert sigma(model[0]) == pytest.approx(1.0, rel=1e-4)


def test_a_step_waits_for_no_value():
    """On the meta device there are no values: whatever the host reads or branches on would raise."""
    model, cap = Every().to("meta"), SpectralCap(0.1, "all")
    cap.open(model)
    cap.project(model)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(model.head.weight.detach().sum())


def test_sixteen_bits_are_capped_to_their_rounding():
    model = logits_module().to(torch.bfloat16)
    cap = SpectralCap(0.1, "all")
    for _ in range(3):
        cap.project(model)
    cap.finish(model)
    assert all(norm <= 0.1 * (1 + 2**-7) for norm in spectral_norms(model, "all").values())
    assert model.head.weight.dtype == torch.bfloat16


# ---- in a training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model,layers", [("module", "all"), ("vit", "last"), ("resnet", "all")])
def test_every_step_meets_the_cap(tmp_path, model, layers):
    """Large steps, so that another direction becomes the longest; a thousandth in a step, a rounding at the end."""
    watch = Watch(layers)
    trainer = robust(
        tmp_path, MODELS[model](), method="prl", spectral_cap=K, spectral_layers=layers, num_train_epochs=4, learning_rate=0.1,
        trainer={"callbacks": [watch]},
    )  # fmt: skip
    trainer.train()
    assert len(watch.norms) == 24 and max(watch.norms) <= K * (1 + 1e-3)
    assert max(watch.norms) > 0.99 * K
    found = {name: sigma(layer) for name, layer in capped_layers(trainer.model, layers).items()}
    assert found and all(norm <= K * (1 + 1e-5) for norm in found.values()), found


def test_all_kinds_of_layers_in_a_training(tmp_path):
    trainer = robust(tmp_path, Every(), method="spl", spectral_cap=K, spectral_layers="all")
    trainer.train()
    found = {name: sigma(layer) for name, layer in capped_layers(trainer.model, "all").items()}
    assert len(found) == 6 and all(norm <= K * (1 + 1e-5) for norm in found.values()), found
    assert trainer.model.again.weight is trainer.model.mix.weight


def test_gpt2s_conv1d(tmp_path):
    shape = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8, num_labels=3, pad_token_id=0)
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(1, 20, (6,)), "labels": i % 3} for i in range(16)]
    args = config(**settings(tmp_path, method="prl", spectral_cap=0.1, spectral_layers="all", max_steps=4))
    trainer = RobustTrainer(GPT2ForSequenceClassification(shape), args, train_dataset=data)
    trainer.train()
    norms = spectral_norms(trainer.model, "all")
    assert len(norms) == 5 and "transformer.h.0.attn.c_attn" in norms and "score" in norms
    assert all(norm <= 0.1 * (1 + 1e-5) for norm in norms.values()), norms


def test_last_leaves_the_others_as_in_training_without(tmp_path):
    """The first step's other weights are those of a run without a cap, and the head is that run's, shrunk."""
    trained = []
    for given in (dict(spectral_cap=0.05), {}):
        trainer = robust(tmp_path, vit(), method="prl", max_steps=1, optim="sgd", **given)
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name]) == (name != "classifier.weight"), name
    norm = float(torch.linalg.matrix_norm(trained[1]["classifier.weight"], 2))
    assert torch.allclose(trained[0]["classifier.weight"], trained[1]["classifier.weight"] * 0.05 / norm, rtol=1e-4)


@pytest.mark.parametrize("method,layers", [(None, "all"), ("prl-at", "last"), ("co-prl", "all")])
def test_a_huge_k_is_training_without_bit_for_bit(tmp_path, method, layers):
    trained = []
    for given in (dict(spectral_cap=1e6, spectral_layers=layers), {}):
        trainer = robust(tmp_path, vit(0.1), method=method, max_steps=4, **given)
        trainer.train()
        trained.append((curve(trainer), trainer.model.state_dict()))
    assert trained[0][0] == trained[1][0]
    assert all(torch.equal(w, trained[1][1][n]) for n, w in trained[0][1].items())


def test_the_switch_without_a_method_is_the_callback_in_a_plain_trainer(tmp_path):
    ours = robust(tmp_path, vit(), spectral_cap=K, spectral_layers="all", learning_rate=0.05)
    plain = Trainer(
        vit(), TrainingArguments(**settings(tmp_path, learning_rate=0.05)), train_dataset=images(),
        callbacks=[SpectralCap(K, layers="all")],
    )  # fmt: skip
    ours.train(), plain.train()
    assert curve(ours) == curve(plain)
    assert all(torch.equal(w, plain.model.state_dict()[n]) for n, w in ours.model.state_dict().items())
    assert 0.99 * K < max(spectral_norms(plain.model, "all").values()) <= K * (1 + 1e-5)
    assert ours.ledger is None and not any(isinstance(c, SpectralCap) for c in ours.callback_handler.callbacks)


def test_a_step_written_out(tmp_path):
    """SGD and W / max(sigma / k, 1) by SVD after each step, in a loop of its own."""
    trainer = robust(tmp_path, vit(), spectral_cap=K, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, max_steps=6)
    model, seen = copy.deepcopy(trainer.model), []
    own = trainer.compute_loss
    trainer.compute_loss = lambda m, inputs, **kw: (seen.append({k: v.clone() for k, v in inputs.items()}), own(m, inputs, **kw))[1]
    trainer.train()
    shrunk = 0
    for batch in seen:
        loss = nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= p.grad
            norm = torch.linalg.svdvals(model.classifier.weight)[0]
            shrunk += int(norm > K)
            model.classifier.weight /= (norm / K).clamp_min(1.0)
    assert shrunk >= 3
    for (name, a), b in zip(trainer.model.named_parameters(), model.parameters()):
        assert torch.allclose(a, b, atol=2e-5), name


def test_accumulation_projects_once_a_step(tmp_path):
    trained = []
    for size, micro in ((16, 1), (4, 4)):
        trainer = robust(
            tmp_path, vit(), images(48), method="prl", spectral_cap=K, spectral_layers="all", per_device_train_batch_size=size,
            gradient_accumulation_steps=micro, learning_rate=0.01,
        )  # fmt: skip
        with mock.patch.object(SpectralCap, "project", autospec=True, side_effect=SpectralCap.project) as project:
            trainer.train()
        assert project.call_count == trainer.state.global_step == 6
        trained.append(torch.tensor(curve(trainer)))
    assert torch.allclose(trained[0], trained[1], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("method", [None, "co-prl", "prl-simclr-sn"])
def test_resumed_is_uninterrupted(tmp_path, method):
    given = dict(spectral_cap=K, learning_rate=0.05)
    given.update({} if method and "simclr" in method else dict(spectral_layers="all"))
    model = (lambda: vit(0.1)) if method else resnet  # the plain Trainer resumes a ViT without its encoder
    whole = robust(tmp_path, model(), method=method, save_strategy="steps", save_steps=5, **given)
    whole.train()
    again = robust(tmp_path, model(), method=method, save_strategy="steps", save_steps=5, **given)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.state.global_step == whole.state.global_step == 12
    assert curve(again)[5:] == curve(whole)[5:]
    assert all(torch.equal(w, whole.model.state_dict()[n]) for n, w in again.model.state_dict().items())


def test_what_is_saved_is_a_plain_model_that_meets_the_cap(tmp_path):
    trainer = robust(
        tmp_path, resnet(), method="prl", spectral_cap=K, spectral_layers="all", learning_rate=0.05, save_strategy="steps",
        save_steps=6,
    )  # fmt: skip
    trainer.train()
    names = set(resnet().state_dict())
    trainer.save_model(tmp_path / "saved")
    for folder, error in ((tmp_path / "saved", 1e-5), (tmp_path / "checkpoint-6", 1e-3)):
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert set(loaded.state_dict()) == names
        norms = spectral_norms(loaded, "all")
        assert 0.99 * K < max(norms.values()) <= K * (1 + error), (folder, norms)


def test_the_end_is_exact_whatever_the_steps_left(tmp_path):
    """An estimate that misses a third, as on weights that no step of ours has seen; the last projection is by SVD."""
    trainer = robust(tmp_path, vit(), method="prl", spectral_cap=K, spectral_layers="all", learning_rate=0.05)
    with mock.patch("robust_trainer.callbacks.spectral_cap.largest_singular_value", lambda w: torch.linalg.matrix_norm(w, 2) / 1.5):
        trainer.train()
    found = spectral_norms(trainer.model, "all").values()
    assert 0.999 * K < max(found) <= K * (1 + 1e-5)


def test_the_best_weights_are_projected_too(tmp_path):
    trainer = robust(
        tmp_path, vit(), method="prl", spectral_cap=K, learning_rate=0.05, save_strategy="steps", save_steps=4,
        eval_strategy="steps", eval_steps=4, load_best_model_at_end=True, trainer={"eval_dataset": images(16, seed=1)},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert sigma(trainer.model.classifier) <= K * (1 + 1e-5)


def test_each_peers_head_is_capped(tmp_path):
    trainer = robust(tmp_path, vit(), method="co-prl", spectral_cap=K, learning_rate=0.1)
    trainer.train()
    assert list(capped_layers(trainer.model)) == ["peers.0.classifier", "peers.1.classifier"]
    found = [sigma(peer.classifier) for peer in trainer.model.peers]
    assert found[0] != found[1] and all(0.9 * K < norm <= K * (1 + 1e-5) for norm in found)
    assert trainer.model.peers[0].vit.layers[0].mlp.fc1.weight.norm() > 0 and isinstance(trainer.model, PeerModel)


def test_lora_is_capped_where_it_trains(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["query", "q_proj"], modules_to_save=["classifier"]))
    names = list(capped_layers(model, "all"))
    assert names and all("lora_" in n or "modules_to_save" in n for n in names) and any("lora_B" in n for n in names)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = robust(tmp_path, model, method="prl", spectral_cap=0.05, spectral_layers="all", learning_rate=0.1)
    trainer.train()
    assert all(sigma(layer) <= 0.05 * (1 + 1e-5) for layer in capped_layers(trainer.model, "all").values())
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)


# ---- settings and mistakes -------------------------------------------------------------------------------------------


def test_every_method_takes_it_and_none_tells_it_unasked():
    for name, row in METHODS.items():
        assert row(spectral_cap=2, spectral_layers="all").spectral == Cap(2, "all"), name
        assert row().spectral == (Cap(1.0) if name == "prl-simclr-sn" else None)
        if "simclr" not in name:
            assert not {"spectral_cap", "spectral_layers", "freeze_backbone"} & set(row().settings)
            assert row(spectral_cap=2.0).settings == {**row.settings, "spectral_cap": 2.0}
    assert METHODS["prl-simclr-sn"](spectral_cap=None).spectral is None


MISTAKES = {
    "zero": (dict(spectral_cap=0.0), "spectral_cap=0.0 must be > 0"),
    "negative": (dict(spectral_cap=-1.0), "spectral_cap=-1.0 must be > 0"),
    "NaN": (dict(spectral_cap=float("nan")), "spectral_cap=nan must be > 0"),
    "infinite": (dict(spectral_cap=float("inf")), "spectral_cap=inf must be > 0"),
    "text": (dict(spectral_cap="wide"), "spectral_cap='wide' must be > 0"),
    "layers": (dict(spectral_cap=1.0, spectral_layers="first"), "spectral_layers='first' is unknown: choose one of last, all"),
    "layers alone": (dict(spectral_layers="all"), "spectral_layers='all' has no effect without a cap: give spectral_cap"),
    "head": (dict(freeze_backbone="yes"), "freeze_backbone='yes' must be true or false"),
}


@every_row("method", [None, "prl"])
@every_row("case", MISTAKES)
def test_mistakes_are_one_line(tmp_path, case, method):
    changes, told = MISTAKES[case]
    with pytest.raises(ValueError, match=told) as caught:
        config(output_dir=str(tmp_path), method=method, **changes)
    assert "\n" not in str(caught.value)


def test_other_settings_still_need_a_method(tmp_path):
    with pytest.raises(ValueError, match="noise_rate=0.1 has no effect without a method"):
        RobustConfig(output_dir=str(tmp_path), noise_rate=0.1, spectral_cap=1.0)


@every_row("k,layers,told", [(0, "last", "spectral_cap=0"), (True, "all", "=True"), (1.0, "some", "'some' is unknown")])
def test_the_callback_checks_itself(k, layers, told):
    with pytest.raises(ValueError, match=told):
        SpectralCap(k, layers)
    if layers == "some":
        with pytest.raises(ValueError, match=told):
            capped_layers(logits_module(), layers)


def test_models_without_such_layers(tmp_path):
    model = vit().requires_grad_(False)
    model.vit.layernorm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layers to cap are frozen \(classifier\): unfreeze one, or drop"):
        robust(tmp_path, model, spectral_cap=1.0).train()
    bare = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CHANNELS * SIZE * SIZE))
    with pytest.raises(ValueError, match="layers to cap are none"):
        SpectralCap(1.0, "all").project(bare)
    with pytest.raises(ValueError, match="model has no linear layer at all"):
        SpectralCap(1.0).project(bare)


@every_row("mark,told", [("ds_id", "DeepSpeed"), ("_is_flat_param", "FSDP1"), ("_fsdp_flattened", "FSDP1")])
def test_sharded_weights_are_refused(tmp_path, mark, told):
    model = vit()
    setattr(model.classifier.weight, mark, 1)
    with pytest.raises(ValueError, match=f"spectral_cap needs whole weights, which {told} shards") as caught:
        robust(tmp_path, model, spectral_cap=1.0).train()
    assert "\n" not in str(caught.value)


def test_a_trainer_under_fsdp_is_refused(tmp_path, monkeypatch):
    trainer = robust(tmp_path, vit(), spectral_cap=1.0)
    for kind, told in ((DistributedType.FSDP, "FSDP1"), (DistributedType.DEEPSPEED, "DeepSpeed")):
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", kind)
        with pytest.raises(ValueError, match=f"which {told} shards"):
            SpectralCap(1.0).on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_two_caps_are_refused(tmp_path):
    args = RobustConfig(**settings(tmp_path, spectral_cap=1.0))
    trainer = RobustTrainer(vit(), args, train_dataset=images(), recipe=METHODS["prl"](spectral_cap=2.0))
    with pytest.raises(ValueError, match="spectral_cap=1.0 in the arguments and 2.0 in the recipe: give one"):
        trainer.train()
    assert frozen_and_capped(args, METHODS["prl"](noise_rate=0.1)) == (False, Cap(1.0))


def test_a_checkpoint_of_another_cap_is_refused(tmp_path):
    robust(tmp_path, vit(), method="prl", spectral_cap=K, save_strategy="steps", save_steps=5, max_steps=5).train()
    for given, told in ((dict(spectral_cap=0.5), "spectral_cap=0.3, this run has spectral_cap=0.5"), ({}, "spectral_cap=None")):
        with pytest.raises(ValueError, match=told):
            robust(tmp_path, vit(), method="prl", **given).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
