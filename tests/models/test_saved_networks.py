"""What a training of several networks leaves on disk: one model that opens anywhere, and the others beside it."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap

import peft
import pytest
import safetensors.torch
import torch
from helpers.toy import CLASSES, SIZE, Logits, config, images, logits_module, robust, settings, vit
from PIL import Image
from transformers import AutoModelForImageClassification, ViTForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from robust_trainer import RobustTrainer
from robust_trainer.models.peers import PeerModel, load_networks
from robust_trainer.models.saved_networks import Export, network_folders
from robust_trainer.models.small_networks import SmallCNN
from robust_trainer.models.zoo import PlainProcessor, build_model, load_model
from robust_trainer.step.checkpoints import MARK


def trained(tmp_path, model=None, steps=4, **kwargs):
    trainer = robust(tmp_path, vit() if model is None else model, method="co-prl", max_steps=steps, **kwargs)
    trainer.train()
    return trainer


def alike(a, b):
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def opened(folder):
    return AutoModelForImageClassification.from_pretrained(folder)


class Unknown:
    """An import system in which robust_trainer is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "robust_trainer":
            raise ImportError(name)


def test_the_better_network_is_saved_as_an_ordinary_model(tmp_path, monkeypatch):
    trainer = trained(tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    losses = trainer.ledger.network_losses()
    best = losses.index(min(losses))
    monkeypatch.setattr(sys, "meta_path", [Unknown(), *sys.meta_path])
    settings = json.loads((tmp_path / "saved/config.json").read_text())
    assert settings["model_type"] in CONFIG_MAPPING_NAMES and "robust" not in json.dumps(settings)
    model = opened(tmp_path / "saved")
    assert type(model) is ViTForImageClassification and model.config.num_labels == CLASSES
    assert alike(model, trainer.model.peers[best])
    assert alike(opened(tmp_path / f"saved/peers/{1 - best}"), trainer.model.peers[1 - best])
    record = json.loads((tmp_path / "saved/peers/peers.json").read_text())
    assert record == {"networks": 2, "export": "best", "exported": best, "trusted_loss": losses}


def test_better_is_the_lower_loss_on_trusted_samples(tmp_path):
    """Network 0 is spoilt, so 1 is taken; samples that both distrust do not count."""
    twins = PeerModel.of([vit(), vit()])
    with torch.no_grad():
        twins.peers[0].classifier.bias += 5 * torch.randn(CLASSES, generator=torch.Generator().manual_seed(1))
    trainer = robust(
        tmp_path, twins, images(32), method="co-prl", learning_rate=0.0, drop_schedule="constant", noise_rate=0.3
    )  # fmt: skip
    trainer.train()
    losses, ledger = trainer.ledger.network_losses(), trainer.ledger
    assert losses.index(min(losses)) == 1
    trusted = ~ledger.distrusted()
    assert 0 < int(trusted.sum()) < 32
    data = images(32)
    with torch.no_grad():
        each = [peer.eval()(data["pixel_values"][:], labels=None).logits for peer in trainer.model.peers]
    own = [torch.nn.functional.cross_entropy(z[trusted], data["labels"][:][trusted]) for z in each]
    assert losses == pytest.approx([float(loss) for loss in own], rel=1e-4)


def test_what_else_can_be_asked_for(tmp_path):
    trainer = trained(tmp_path, data=images(16))
    states = [peer.state_dict() for peer in trainer.model.peers]
    for export in ("peer1", "average", "ensemble", "best"):  # one after the other in one folder
        trainer.args.export = export
        trainer.save_model(str(tmp_path / "saved"))
        model = opened(tmp_path / "saved")
        if export == "ensemble":
            assert isinstance(model, PeerModel) and alike(model, trainer.model) and not (tmp_path / "saved/peers").exists()
            continue
        whole = load_networks(str(tmp_path / "saved"), opened)
        assert isinstance(whole, PeerModel) and alike(whole, trainer.model)
        if export == "average":
            for name, value in model.state_dict().items():
                assert torch.allclose(value, (states[0][name] + states[1][name]) / 2, atol=1e-6)
        elif export != "best":
            assert alike(model, trainer.model.peers[int(export[4])])
    robust(tmp_path, vit()).save_model(str(tmp_path / "saved"))  # one network, into the same folder
    assert isinstance(load_networks(str(tmp_path / "saved"), opened), ViTForImageClassification)
    assert not (tmp_path / "saved/peers").exists()


def test_a_plain_module_is_saved_as_the_trainer_saves_one(tmp_path):
    trainer = trained(tmp_path / "plain", logits_module(), export="peer1")
    trainer.save_model(str(tmp_path / "plain"))
    one = Logits()
    one.load_state_dict(safetensors.torch.load_file(tmp_path / "plain/model.safetensors"))
    assert alike(one, trainer.model.peers[1]) and not (tmp_path / "plain/config.json").exists()


@pytest.fixture
def adapted(tmp_path):
    vit().save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"])

    def train(steps, resume=None, **kwargs):
        args = config(**settings(tmp_path, method="co-prl", max_steps=steps, **kwargs))
        trainer = RobustTrainer(
            model_init=lambda: peft.get_peft_model(opened(tmp_path / "base"), lora), args=args, train_dataset=images(16)
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def test_adapters_are_saved_as_adapters(tmp_path, adapted):
    trainer = adapted(1, export="peer1")
    trainer.save_model()
    one = peft.PeftModel.from_pretrained(opened(tmp_path / "base"), tmp_path).eval()
    x = images(8)["pixel_values"][:]
    with torch.no_grad():
        assert torch.equal(one(x).logits, trainer.model.peers[1].eval()(x).logits)
    with pytest.raises(ValueError, match="export='ensemble' saves no PEFT adapters that could be opened again"):
        adapted(1, export="ensemble")


@pytest.mark.slow
def test_adapters_resume_and_average(tmp_path, adapted):
    trainer = adapted(4, export="average", save_strategy="steps", save_steps=2)
    again = adapted(4, str(tmp_path / "checkpoint-2"), export="average")
    assert alike(trainer.model, again.model)
    again.save_model()
    mean = peft.PeftModel.from_pretrained(opened(tmp_path / "base"), tmp_path).state_dict()
    states = [peer.state_dict() for peer in again.model.peers]
    assert all(torch.allclose(v, (states[0][k] + states[1][k]) / 2, atol=1e-6) for k, v in mean.items())


def test_a_checkpoint_resumes_bit_for_bit_whatever_it_exports(tmp_path):
    """No network of the checkpoint is the model that it shows."""
    common = dict(method="co-teaching", export="average", save_strategy="steps", save_steps=2, max_steps=4, data=images(24))
    straight = robust(tmp_path / "straight", vit(dropout=0.1), **common)
    straight.train()
    resumed = robust(tmp_path / "resumed", vit(dropout=0.1), **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight/checkpoint-2"))
    assert alike(straight.model, resumed.model)
    assert all(torch.equal(v, resumed.ledger.columns[k]) for k, v in straight.ledger.columns.items())

    weights = tmp_path / "straight/checkpoint-4/peers/1/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    told = r"checkpoint-4'? is incomplete \(peers/1/model.safetensors is damaged: .*checkpoint-2"
    with pytest.raises(ValueError, match=told):
        resumed.train(resume_from_checkpoint=str(tmp_path / "straight/checkpoint-4"))
    shutil.rmtree(tmp_path / "straight/checkpoint-2/peers")
    (tmp_path / "straight/checkpoint-2" / MARK).unlink()  # as in a copy of the files alone
    with pytest.raises(ValueError, match=r"checkpoint-2' holds one network, the model has 2: copy its folder 'peers' with it"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "straight/checkpoint-2"))


def test_the_best_checkpoint_is_loaded_into_every_network(tmp_path):
    trainer = robust(
        tmp_path, vit(), method="co-prl", max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True, learning_rate=0.05,
        trainer={"eval_dataset": images(16)},
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert alike(trainer.model, load_networks(best, opened))
    other = next(str(path) for path in tmp_path.glob("checkpoint-*") if str(path) != best)
    assert not alike(trainer.model, load_networks(other, opened))


def test_refused_in_one_line(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"export='mean' is unknown: choose one of best, average, ensemble, peer0, peer1"):
        robust(tmp_path, method="co-prl", export="mean")
    for method in ("prl", None):
        keep = {"image_mean": None, "image_std": None}
        with pytest.raises(ValueError, match=r"export='average' is for several networks, the model is one: leave export out"):
            robust(tmp_path, method=method, export="average", **keep).train()
    with pytest.raises(ValueError, match=r"export='peer2' but there are 2 networks: choose one of peer0 to peer1"):
        robust(tmp_path, method="co-prl", export="peer2").train()
    record = tmp_path / "peers/peers.json"
    record.parent.mkdir()
    for damaged in ("{", '{"networks": 1e9, "exported": 0}', '{"networks": 2, "exported": 7}', "[]"):
        record.write_text(damaged)
        with pytest.raises(ValueError, match=r"peers.json' is damaged"):
            network_folders(tmp_path)
    record.write_text('{"networks": 3, "exported": 0}')
    with pytest.raises(ValueError, match=r"is missing: .* was saved with 3 networks, copy the whole folder"):
        network_folders(tmp_path)
    assert Export("best", [float("nan"), 2.0]).number() == 1


def test_a_small_network_brings_its_code(tmp_path):
    """The file that is saved with it needs torch and transformers alone, and here the package's own class is opened."""
    model, _ = build_model("small-cnn", [str(i) for i in range(CLASSES)], image_size=SIZE)
    processor = PlainProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    trainer = trained(tmp_path, model, steps=1, data=images(16), trainer={"processing_class": processor})
    trainer.save_model()
    tree = ast.parse((tmp_path / "small_networks.py").read_text())
    froms = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert froms == {"__future__", "collections", "typing", "torch", "transformers"}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["auto_map"]["AutoModelForImageClassification"] == "small_networks.SmallCNN"
    both, alone = load_model(str(tmp_path))[0], load_model(str(tmp_path), alone=True)[0]
    assert alike(both, trainer.model) and type(alone) is SmallCNN and not isinstance(both, SmallCNN)


PROCESS = """
    import sys

    class Unknown:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "robust_trainer":
                raise ImportError(name)

    sys.meta_path.insert(0, Unknown())
    from transformers import pipeline

    opened = pipeline("image-classification", model=sys.argv[1], device="cpu", trust_remote_code=sys.argv[3] == "code")
    found = opened(sys.argv[2])
    print(max(found, key=lambda row: row["score"])["label"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,name", [("co-prl", "vit"), ("decouple", "vit"), ("erat", "vit"), ("prl", "vit"), ("co-teaching", "small-cnn")]
)
def test_a_process_that_does_not_know_the_package_opens_the_model(tmp_path, method, name):
    processor = PlainProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    own = vit() if name == "vit" else build_model(name, [f"c{i}" for i in range(CLASSES)], image_size=SIZE)[0]
    trainer = robust(tmp_path, own, method=method, max_steps=2, trainer={"processing_class": processor})
    trainer.train()
    trainer.save_model()
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "red.png")
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path), str(tmp_path / "red.png")]
    command.append("code" if name == "small-cnn" else "none")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    model = opened(tmp_path).eval()
    x = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert done.stdout.split()[-1] == model.config.id2label[int(model(x).logits.argmax())]
