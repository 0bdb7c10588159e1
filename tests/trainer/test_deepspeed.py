"""DeepSpeed's ZeRO: what is refused, what its engine is told, and two processes against one where it is installed."""

import importlib.util
import json
import os
from types import SimpleNamespace

import pytest
import torch
from helpers.equality import check_processes, equality_module
from helpers.processes import launch
from helpers.toy import logits_module, robust

from robust_trainer import METHODS
from robust_trainer.methods.devices import engine_for, validate_devices
from robust_trainer.step.checkpoints import to_resume_from
from robust_trainer.step.process_files import MARK

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before the processes that are forked for the tests import DeepSpeed
installed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def under_deepspeed(stage=2, clipping="auto", max_grad_norm=1.0, model=None):
    """As much of a trainer as is looked at."""
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"gradient_clipping": clipping})
    state = SimpleNamespace(fsdp_plugin=None, deepspeed_plugin=plugin)
    return SimpleNamespace(
        accelerator=SimpleNamespace(state=state, num_processes=2, even_batches=True), is_fsdp_enabled=False,
        is_deepspeed_enabled=True, args=SimpleNamespace(max_grad_norm=max_grad_norm), model_wrapped=model,
    )  # fmt: skip


def test_what_is_refused_is_told_in_one_line():
    model = logits_module()
    for row, given, told in (
        ("prl-g", {}, "method 'prl-g' propagates the losses once before the step's backward, and DeepSpeed takes the first one"),
        ("nrat-awp", {"stage": 3}, r"moves whole weights \(AWP\), which ZeRO-3 keeps in parts: set zero_optimization="),
        ("co-prl", {}, "clips each network's gradient by itself, DeepSpeed that of all together: set max_grad_norm=0"),
        ("co-prl", {"clipping": 0.5, "max_grad_norm": 0.0}, "clips each network's gradient by itself"),
    ):
        recipe = METHODS[row](noise_rate=0.1) if "noise_rate" in METHODS[row].settings else METHODS[row]()
        with pytest.raises(ValueError, match=told) as caught:
            validate_devices(under_deepspeed(**given), recipe, model)
        assert "\n" not in str(caught.value)
    validate_devices(under_deepspeed(max_grad_norm=0.0), METHODS["co-prl"](noise_rate=0.1), model)
    validate_devices(under_deepspeed(clipping=0.0), METHODS["co-prl"](noise_rate=0.1), model)
    for row, stage in (("nrat-awp", 2), ("trades", 3), ("prl", 3)):
        validate_devices(under_deepspeed(stage), METHODS[row](**{"noise_rate": 0.1} if row == "prl" else {}), model)


@pytest.mark.parametrize("before", ["auto", 0.25, None])
def test_the_engine_clips_as_the_method_says_and_steps_on_weights_that_are_restored(before):
    """The configuration is the user's again afterwards; weights are put back before the engine's own optimizer steps."""
    weight, put_back = torch.nn.Parameter(torch.ones(2)), []
    weight.grad = torch.ones(2)
    engine = SimpleNamespace(basic_optimizer=torch.optim.SGD([weight], lr=0.5))
    trainer = under_deepspeed(clipping=before, model=engine)
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    if before is None:
        del config["gradient_clipping"]
    expected = dict(config)

    def restore():
        put_back.append(weight.detach().clone())

    with engine_for(trainer, METHODS["normclip"](clip_norm=3.0), restore):
        assert config["gradient_clipping"] == 3.0
    assert config == expected
    engine.basic_optimizer.step()
    assert torch.equal(put_back[0], torch.ones(2)) and torch.equal(weight.detach(), torch.full((2,), 0.5))
    with engine_for(trainer, METHODS["nrat-awp"](), restore):
        assert config == expected


def test_a_checkpoint_of_other_processes_is_refused(tmp_path, monkeypatch):
    trainer = robust(tmp_path, method="prl", save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    mark = tmp_path / "checkpoint-2" / MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "processes": 2}))
    monkeypatch.setattr("robust_trainer.step.checkpoints.flaw", lambda *_: None)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(
        ValueError, match="was saved by 2 processes under DeepSpeed, now there are 1: start 2, or make it a universal"
    ):
        to_resume_from(trainer, str(tmp_path / "checkpoint-2"))
    plugin = SimpleNamespace(deepspeed_config={"checkpoint": {"load_universal": True}})
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    assert to_resume_from(trainer, str(tmp_path / "checkpoint-2")) == str(tmp_path / "checkpoint-2")


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    "row,cut", [("nrat-awp", "zero1"), ("normclip", "zero2"), ("trades", "zero3"), ("co-prl/unclipped", "zero2")]
)
def test_two_processes_train_what_one_trains(tmp_path, monkeypatch, row, cut):
    check_processes(equality_module(monkeypatch), row, cut, "uneven", tmp_path)


@installed
@pytest.mark.slow
def test_a_run_is_resumed_by_as_many_processes(tmp_path, monkeypatch):
    equality = equality_module(monkeypatch)

    def work(out):
        straight = equality.train("prl-at-memory", "uneven", "float64", "zero2", str(out), save_strategy="steps", save_steps=10)
        again = equality.train("prl-at-memory", "uneven", "float64", "zero2", str(out), resume=str(out / "checkpoint-10"))
        assert len(again["losses"]) == len(straight["losses"]) - 10
        found = equality.differences(straight, {**again, "losses": straight["losses"]})
        assert found["weights"] < 1e-9 and found["decisions"] == 0, found

    launch(work, 2, tmp_path, tmp_path)


@installed
@pytest.mark.slow
def test_capped_weights_are_those_of_one_process(tmp_path, monkeypatch):
    """The float32 copy that the engine steps is capped with the weights, which it would undo."""
    equality = equality_module(monkeypatch)
    given = dict(spectral_cap=0.2)

    def work(out):
        found = equality.train("prl", "uneven", "float64", "zero2", str(out), **given)
        if torch.distributed.get_rank() == 0:
            torch.save(found, out / "found.pt")

    launch(work, 2, tmp_path, tmp_path)
    one = equality.train("prl", "uneven", "float64", "1", str(tmp_path), **given)
    found = equality.differences(one, torch.load(tmp_path / "found.pt"))
    assert found["weights"] < 1e-6 and found["decisions"] == 0, found
    assert torch.linalg.matrix_norm(one["weights"]["head.weight"], 2) <= 0.2 + 1e-6
