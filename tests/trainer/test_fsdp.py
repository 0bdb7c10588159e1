"""FSDP2: what a sharded model's weights, gradients and layers are, each against the whole model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.equality import equality_module
from helpers.processes import launch
from helpers.toy import NORMALISATION, images, logits_module, robust, vit
from torch.distributed.fsdp import StateDictType, fully_shard
from torch.distributed.tensor import DTensor

from robust_trainer.attacks.target import Target
from robust_trainer.callbacks import RobustnessCallback
from robust_trainer.callbacks.spectral_cap import SpectralCap, spectral_norms
from robust_trainer.models.sharding import gradients_alone, norms, own_part, reshard, shardable, whole
from robust_trainer.perturbations.awp import PerturbedWeights, WeightPerturbation
from robust_trainer.step.checkpoints import STATE_FILE, flaw, mark


def test_awp_moves_sharded_weights_as_whole_ones(tmp_path):
    """The gradient is that of all processes' samples; ``grad`` and the weights are bit for bit what they were before.

    ``torch.autograd.grad`` with respect to sharded weights would find nothing, and move nothing.
    """

    def work(out):
        model, whole_model, awp = vit().double(), vit().double(), WeightPerturbation(gamma=0.1)
        for layer in model.vit.layers:
            fully_shard(layer)
        fully_shard(model)
        data = images(8)[:]
        x, y = torch.as_tensor(data["pixel_values"]).double(), torch.as_tensor(data["labels"])
        mine = slice(torch.distributed.get_rank(), None, 2)
        with torch.no_grad():
            model(pixel_values=x)  # some modules hold whole copies now
        reshard(model)
        moved, expected = awp.weights(model), awp.weights(whole_model)
        assert all(isinstance(weight, DTensor) for weight in moved) and len(moved) == len(expected) > 10
        loss = torch.nn.functional.cross_entropy(model(pixel_values=x[mine]).logits, y[mine])
        found = torch.autograd.grad(loss, moved, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in found)
        moved[0].grad = torch.ones_like(moved[0])
        with gradients_alone(model, deferred=False):
            loss.backward()
            found = [weight.grad for weight in moved]
        assert torch.equal(whole(moved[0].grad), torch.ones(moved[0].shape, dtype=torch.float64)) and moved[1].grad is None
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(whole_model(pixel_values=x).logits, y), expected)
        for ours, theirs in zip(found, gradients):
            assert torch.allclose(whole(ours), theirs, rtol=1e-9, atol=1e-12)
        before = [own_part(weight).clone() for weight in moved]
        ours = PerturbedWeights(moved, awp.offsets(moved, found), lambda: reshard(model))
        theirs = PerturbedWeights(expected, awp.offsets(expected, gradients))
        with torch.no_grad():
            model(pixel_values=x)
            for perturbed in (ours, theirs):
                perturbed.apply()
            assert (whole(moved[0]) - expected[0]).abs().max() < 1e-6 < (own_part(moved[0]) - before[0]).abs().max()
            assert torch.allclose(model(pixel_values=x).logits, whole_model(pixel_values=x).logits, atol=1e-6)
            for perturbed in (ours, theirs):
                perturbed.restore()
            assert torch.allclose(model(pixel_values=x).logits, whole_model(pixel_values=x).logits, atol=1e-12)
        reshard(model)
        assert all(torch.equal(own_part(weight), then) for weight, then in zip(moved, before))
        sizes = norms([*moved, torch.ones(4)])
        assert torch.allclose(torch.stack(sizes[:-1]), torch.stack(norms(expected))) and float(sizes[-1]) == 2.0

    launch(work, 2, tmp_path, tmp_path)


def test_fsdp1_and_models_that_are_sharded_already_are_refused(tmp_path, monkeypatch):
    trainer = robust(tmp_path, vit(), method="prl")
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"this run has FSDP1, which hides the layers' weights in flat ones: set fsdp_config="):
        trainer.train()

    def work(out):
        model = vit()
        fully_shard(model)
        with pytest.raises(ValueError, match="the model is sharded already, method 'trades' has the Trainer shard it"):
            robust(out, model, method="trades").train()
        with pytest.raises(ValueError, match="the model is sharded over processes, attacks take a whole one: save it, and open it"):
            Target(model, **NORMALISATION)
        tracking = RobustnessCallback(images(8), attacks_during=("fgsm",), attacks_final=None, eps=0.1, keep_best=False)
        with pytest.raises(ValueError, match="RobustnessCallback attacks and keeps a whole model, which FSDP shards: use DDP"):
            tracking.on_train_begin(SimpleNamespace(load_best_model_at_end=False), None, None, model=model)

    launch(work, 1, tmp_path, tmp_path)


def test_what_accelerate_asks_before_it_shards(tmp_path):
    """Each network by itself; embeddings that lie in a layer, or that there are none of, with what they lie in."""
    model = vit()
    names = copy.copy(model._no_split_modules)
    with shardable(model):
        assert model.get_input_embeddings() is None and model._no_split_modules == names
    assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings
    with shardable(model, ["ViTLayer"]):
        assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings
    with shardable(logits_module()) as _:
        pass
    both = robust(tmp_path, vit(), method="co-prl", noise_rate=0.1).model
    with shardable(both):
        assert both.get_input_embeddings() is None and {*names, "ViTForImageClassification"} == both._no_split_modules
    assert len(list(both.get_input_embeddings()._objects)) == 2 and both._no_split_modules == names


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", pytest.param("FULL_STATE_DICT", marks=pytest.mark.slow)])
def test_a_sharded_run_is_resumed_by_as_many_processes_and_by_more(tmp_path, monkeypatch, kind):
    """Weights, momentum, ledger and decisions; in the middle of an epoch. Three processes read what two have written."""
    equality = equality_module(monkeypatch)
    row, config, checkpoint = "prl-at-memory", {"state_dict_type": kind}, str(tmp_path / "checkpoint-10")

    def train(out, cut, **given):
        found = equality.train(row, "uneven", "float64", cut, str(out), fsdp_config=dict(config), num_train_epochs=2, **given)
        if torch.distributed.get_rank() == 0:
            torch.save(found, out / f"{cut}-{'resume' in given}.pt")

    def both(out):
        train(out, "fsdp2", save_strategy="steps", save_steps=10)
        train(out, "fsdp2", resume=checkpoint)

    launch(both, 2, tmp_path, tmp_path / "two")
    parts = tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0"
    assert parts.is_dir() == (kind == "SHARDED_STATE_DICT") and (tmp_path / "checkpoint-10" / STATE_FILE).is_file()
    launch(lambda out: train(out, "fsdp3", resume=checkpoint), 3, tmp_path, tmp_path / "three")
    straight = torch.load(tmp_path / "fsdp2-False.pt")
    for cut in ("fsdp2", "fsdp3"):
        again = torch.load(tmp_path / f"{cut}-True.pt")
        assert len(again["losses"]) == len(straight["losses"]) - 10
        found = equality.differences(straight, {**again, "losses": straight["losses"]})
        assert found["weights"] < 1e-9 and found["decisions"] == 0, (cut, found)


def test_a_checkpoint_of_other_devices_is_told(tmp_path, monkeypatch):
    """What is missing, why, and what to set; a part of a sharded model that was cut short."""
    trainer = robust(tmp_path, method="prl", save_strategy="steps", save_steps=3, max_steps=3)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=StateDictType.SHARDED_STATE_DICT)
    with monkeypatch.context() as sharded:
        sharded.setattr(trainer, "is_fsdp_enabled", True)
        sharded.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
        assert flaw(trainer, checkpoint) == (
            "pytorch_model_fsdp_0/.metadata is missing (saved without FSDP: resume without it, or start a new run from its weights)"
        )
        for name in ("optimizer.bin", "pytorch_model_fsdp.bin"):
            (checkpoint / name).write_bytes((checkpoint / "optimizer.pt").read_bytes())
        assert "saved under FSDP2 with state_dict_type='FULL_STATE_DICT': set state_dict_type=" in flaw(trainer, checkpoint)
        plugin.state_dict_type = StateDictType.FULL_STATE_DICT
        assert flaw(trainer, checkpoint) is None
        plugin.state_dict_type = StateDictType.SHARDED_STATE_DICT
        for folder in ("pytorch_model_fsdp_0", "optimizer_0"):
            (checkpoint / folder).mkdir()
            for name in (".metadata", "__0_0.distcp"):
                (checkpoint / folder / name).write_bytes(b"part")
        mark(trainer, str(checkpoint))
        assert flaw(trainer, checkpoint) is None
        (checkpoint / "optimizer_0" / "__0_0.distcp").write_bytes(b"pa")
        assert flaw(trainer, checkpoint) == "optimizer_0/__0_0.distcp is damaged: 2 bytes where 4 were saved"
    (checkpoint / "optimizer.pt").unlink()
    assert "optimizer.pt is missing (saved under FSDP2 with state_dict_type='" in flaw(trainer, checkpoint)


def test_the_cap_of_sharded_weights_is_that_of_whole_ones(tmp_path):
    """Each process shrinks its part; after a forward that left whole copies, too, and exactly at the end."""

    def work(out):
        model, whole_model = vit(), vit()
        fully_shard(model.vit.layers[0])
        fully_shard(model)
        ours, theirs = SpectralCap(0.05, "all"), SpectralCap(0.05, "all")
        before = whole_model.classifier.weight.clone()
        for step in ("project", "finish"):
            with torch.no_grad():
                model(pixel_values=torch.zeros(2, 3, 8, 8))
            getattr(ours, step)(model)
            getattr(theirs, step)(whole_model)
            for (name, mine), expected in zip(model.named_parameters(), whole_model.parameters()):
                assert torch.allclose(whole(mine), expected, rtol=1e-5, atol=1e-7), name
        assert not torch.equal(before, whole_model.classifier.weight)
        assert max(spectral_norms(model, "all").values()) == pytest.approx(0.05, rel=1e-5)

    launch(work, 2, tmp_path, tmp_path)


def test_what_is_frozen_or_nonfinite_under_fsdp(tmp_path, monkeypatch):
    """The probe's head alone moves, and all that was trainable is so again; a NaN gradient moves nothing; own losses are found."""
    equality = equality_module(monkeypatch)
    fsdp_on_cpu = equality.fsdp_on_cpu

    class Weighted(torch.nn.Module):
        """Classes' weights in the model's own loss."""

        def __init__(self):
            super().__init__()
            self.net = logits_module()

        def forward(self, pixel_values, labels=None):
            logits = self.net(pixel_values)
            if labels is None:
                return {"logits": logits}
            weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
            return {"loss": torch.nn.functional.cross_entropy(logits, labels, weight=weight), "logits": logits}

    def work(out):
        def trained(folder, model, sharded, **given):
            more = dict(fsdp=True, fsdp_config={}) if sharded else {}
            size = 4 if sharded else 8
            trainer = robust(
                out / folder, model, images(32), per_device_train_batch_size=size, num_train_epochs=1, optim="sgd", **more, **given
            )  # fmt: skip
            trainer.train()
            return trainer

        with fsdp_on_cpu():
            model = vit()
            start = {name: value.clone() for name, value in model.state_dict().items()}
            trainer = trained("probe", model, True, method="prl", noise_rate=0.1, freeze_backbone=True)
            assert all(parameter.requires_grad for parameter in trainer.model.parameters())
            changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(whole(value), start[name])}
            assert changed == {"classifier.weight", "classifier.bias"}
            trainer = trained("weights", Weighted(), True, method="prl", noise_rate=0.1)
            assert "weight" in trainer._robust_step.run.recipe.objective.of_network.__self__.given
            plain = logits_module()
            given = dict(per_device_train_batch_size=4, max_steps=2, method="standard", fsdp=True, fsdp_config={})
            stopped = robust(out / "nan", plain, images(32), **given)
            hooked = stopped._clip_grad_norm

            def spoiled(model):
                for parameter in model.parameters():
                    own_part(parameter.grad).fill_(float("nan"))
                return hooked(model)

            stopped._clip_grad_norm = spoiled
            stopped.train()
            assert all(whole(value).isfinite().all() for value in stopped.model.parameters())
            assert stopped.state.log_history[0]["skipped_steps"] == 1

    launch(work, 2, tmp_path, tmp_path)
