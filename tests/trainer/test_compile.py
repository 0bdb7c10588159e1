"""``torch_compile=True``: attacks and training forwards run compiled, as often compiled as there are kinds of them, never in a step
that repeats another; results are the eager ones."""

import shutil

import pytest
import torch
from helpers.equality import equality_module
from helpers.processes import launch
from helpers.toy import curve, images, logits_module, robust, vit
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from robust_trainer import METHODS

#: Rows, with the kinds of forward that they have: a graph each, and one more each for batches of other sizes. ``trades``: the clean
#: predictions, the attack's and the training's; in ``erat`` that of several variants of each sample beside them.
ROWS = {
    "prl": 1, "prl-at": 2, "trades": 3, "co-prl": 1, "standard": 1, "pgd-at": 2, "nrat-awp": 2, "erat": 4, "rca": 2,
    "decouple": 1, "auto": 2,
}  # fmt: skip
QUICK = ("prl-at", "co-prl")


class Graphs(TrainerCallback):
    """How many graphs there were after each step."""

    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, **kwargs):
        self.after.append(counters["stats"]["unique_graphs"])


def trained(tmp_path, row, backend=None, model=logits_module, count=30, **more):
    """Three epochs whose last batch is short, compiled where a backend is given."""
    torch._dynamo.reset()
    counters.clear()
    graphs, steps = Graphs(), {"steps": 2} if METHODS[row].settings.get("steps", 1) > 1 else {}
    compiled = {} if backend is None else dict(torch_compile=True, torch_compile_backend=backend)
    common = dict(optim="sgd", num_train_epochs=3, learning_rate=0.05, logging_steps=1)
    trainer = robust(
        tmp_path, model(), images(count), trainer=dict(callbacks=[graphs]), method=row, **{**common, **steps, **compiled, **more}
    )
    trainer.train()
    return trainer, graphs.after


def check_equal(one, other, rel=1e-5):
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        if "k_proj.bias" not in name:  # an attention's keys need no bias: it has no gradient but rounding
            torch.testing.assert_close(b, a, rtol=rel, atol=rel * float(a.abs().max()), msg=name)
    assert len(curve(one)) >= 12
    assert all(a == pytest.approx(b, rel=10 * rel) for a, b in zip(curve(one), curve(other), strict=True))


@pytest.mark.parametrize("row", [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in ROWS])
def test_compiled_is_eager(tmp_path, row):
    count = 62 if row == "auto" else 30  # it judges 50 labels or more
    (one, _), (other, graphs) = (trained(tmp_path, row, backend, count=count) for backend in (None, "aot_eager"))
    assert hasattr(other.model_wrapped, "_orig_mod") and not hasattr(other.model, "_orig_mod")
    check_equal(one, other)
    first = len(graphs) // 3  # the first epoch, with its short batch
    assert 0 < graphs[0] <= graphs[first - 1] <= 2 * ROWS[row] and set(graphs[first:]) == {graphs[first - 1]}, graphs
    assert not counters["graph_break"]


def test_compiled_networks_are_clipped_one_by_one(tmp_path):
    """They were clipped as one: the compiled model was not taken for several networks."""
    ends = [trained(tmp_path, "co-prl", backend, max_grad_norm=0.05)[0] for backend in (None, "eager")]
    assert max(norm for _, norm in curve(ends[0])) > 0.1
    check_equal(*ends)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on the CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("row", ["prl-at", "trades"])
def test_inductor_is_eager(tmp_path, row):
    (one, _), (other, graphs) = (trained(tmp_path, row, backend) for backend in (None, "inductor"))
    check_equal(one, other, rel=1e-4 if row == "trades" else 1e-5)
    assert len(set(graphs[len(graphs) // 3 :])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("row", ["prl-at", "nrat-awp"])
def test_a_transformer_with_accumulation(tmp_path, row):
    """Of 60 samples the last step of an epoch has a full batch and a short one."""
    more = dict(model=vit, count=60, gradient_accumulation_steps=2)
    (one, _), (other, graphs) = (trained(tmp_path, row, backend, **more) for backend in (None, "aot_eager"))
    check_equal(one, other)
    assert len(set(graphs[len(graphs) // 3 :])) == 1 and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ["prl-at", "co-prl"])
def test_two_processes(tmp_path, row):
    def work(out):
        more = dict(per_device_train_batch_size=4, ddp_find_unused_parameters=False, count=32)
        check_equal(*(trained(out, row, backend, **more)[0] for backend in (None, "eager")))

    launch(work, 2, tmp_path, tmp_path)


@pytest.mark.slow
def test_two_processes_that_share_the_model(tmp_path, monkeypatch):
    """FSDP2, AWP, compiled layers."""
    equality = equality_module(monkeypatch)

    def work(out):
        runs = [
            equality.train("nrat-awp", "uneven", "float32", "fsdp2", str(out), **compiled)
            for compiled in ({}, dict(torch_compile=True, torch_compile_backend="eager"))
        ]
        for run in runs:
            run["weights"] = {name.replace("_orig_mod.", ""): value for name, value in run["weights"].items()}
        found = equality.differences(*runs)
        assert found["weights"] < 1e-5 and found["loss"] < 1e-5 and found["decisions"] == 0, found

    launch(work, 2, tmp_path, tmp_path)


@pytest.mark.parametrize("row", ["prl-g", "ignormclip"])
def test_rows_that_record_layers_say_so(tmp_path, row):
    with pytest.raises(ValueError, match=rf"method '{row}' records each layer's forward: switch torch_compile .* off"):
        trained(tmp_path, row, "eager")
