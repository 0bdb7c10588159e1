"""The pass that judges labels: what is compared of inputs, when it is due, and what a checkpoint keeps of it."""

import pytest
import torch
from helpers.toy import images, robust

from robust_trainer.evidence.decision import ActOnEvidence
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.step import evidence as stage_module
from robust_trainer.step.evidence import VERDICT, EvidenceStage
from robust_trainer.step.input_reader import SIDE, TOKENS, InputReader
from robust_trainer.step.records import Run
from robust_trainer.types import ForwardOutput, Progress

# ---- inputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 224, 160), (3, 32, 32)])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_images_are_made_small_enough(shape, size):
    x = torch.rand(4, *shape)
    reader = InputReader.of({"labels": torch.zeros(4), "pixel_values": x}, size)
    height, width, channels = reader.shape
    assert channels == shape[0] and max(height, width) <= max(SIDE, 1) and height <= shape[1] and width <= shape[2]
    vectors = reader.read({"pixel_values": x})
    assert vectors.shape == (4, height * width * channels) and vectors.dtype == torch.float16
    levels = reader.levels(vectors)
    assert levels.dtype == torch.uint8 and int(levels.min()) == 0 and int(levels.max()) == 255


def test_small_images_are_compared_as_they_are():
    x = torch.rand(3, 3, 8, 8)
    reader = InputReader.of({"x": x}, 100)
    vectors = reader.read({"x": x})
    torch.testing.assert_close(vectors.view(3, 8, 8, 3).permute(0, 3, 1, 2).float(), x, rtol=0, atol=1e-3)
    assert int(reader.levels(torch.zeros(3, 192).half()).max()) == 0  # all alike


def test_texts_are_compared_by_the_tokens_that_they_have():
    ids, mask = torch.tensor([[5, 7, 7, 0], [9, TOKENS + 5, 3, 1]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    reader = InputReader.of({"input_ids": ids, "attention_mask": mask}, 2)
    vectors = reader.read({"input_ids": ids, "attention_mask": mask})
    assert reader.shape is None and vectors.shape == (2, TOKENS) and set(vectors.unique().tolist()) == {0, 255}
    assert [row.nonzero().flatten().tolist() for row in vectors] == [[5, 7], [1, 3, 5, 9]]
    assert torch.equal(reader.levels(vectors), vectors)
    assert int(reader.read({"input_ids": ids})[0, 0]) == 255  # without a mask nothing is padding


@pytest.mark.parametrize(
    "inputs", [{}, {"x": torch.rand(4, 9)}, {"x": torch.rand(4, 5, 8, 8)}, {"x": torch.zeros(4, 3, 8, 8).int()}]
)
def test_other_inputs_are_not_compared(inputs):
    assert InputReader.of(inputs, 100) is None


# ---- when, and what a step sees ------------------------------------------------------------------------------------------


def stage_of(size=6, **act):
    run = Run(recipe=None, device=torch.device("cpu"), classes=3, ledger=SampleLedger(size, judged=True))
    return EvidenceStage(run, ActOnEvidence(**act))


def look(stage):
    zero = torch.zeros(4, dtype=torch.float64)
    stage._count(zero, zero, True, zero[0])


@pytest.mark.parametrize("epochs,looks", [(0.3, 2), (1, 2), (3, 2), (8, 4), (300, 2)])
def test_it_is_due_at_the_epochs_that_are_named_once_each(epochs, looks):
    stage, done = stage_of(looks=looks), []
    for epoch in range(max(int(epochs), 1)):
        while stage.due(Progress(float(epoch), float(epochs), 0)):
            done.append(epoch)
            look(stage)
    assert done == stage.act.looks_at(epochs)


def test_a_run_that_was_resumed_later_has_its_looks_still():
    """A checkpoint of the second epoch with one of two looks: the second is due where it would have been."""
    stage = stage_of(looks=2)
    look(stage)
    assert not stage.due(Progress(1.0, 8.0, 0)) and stage.due(Progress(2.0, 8.0, 0)) and stage.due(Progress(3.0, 8.0, 0))


def test_without_a_ledger_nothing_is_due():
    stage = stage_of()
    stage.run.ledger = None
    assert not stage.due(Progress(0.0, 3.0, 0)) and stage.rate is None


def test_targets_are_the_given_labels_until_a_look_has_told_others():
    stage = stage_of()
    targets, index = torch.tensor([2, 0, 1]), torch.tensor([4, 0, 2])
    output = ForwardOutput(logits=torch.zeros(1, 3, 3), targets=targets, index=index)
    assert torch.equal(stage.targets(output), targets.expand(1, 3))
    look(stage)
    assert torch.equal(stage.targets(output), targets.expand(1, 3))  # a look without a verdict
    stage.run.ledger._columns["target"][:] = torch.tensor([1, 1, 1, 0, 0, 0])
    assert stage.targets(output).tolist() == [[0, 1, 1]]


def test_the_state_has_the_verdict_and_is_restored(tmp_path):
    trainer = robust(tmp_path, data=images(64), method="auto", num_train_epochs=1)
    trainer.train()
    saved = trainer._robust_step.state()
    assert {f"ledger.{name}" for name in VERDICT} <= set(saved)
    other = robust(tmp_path, data=images(64), method="auto", num_train_epochs=1, learning_rate=0.0)
    other._robust_step = other._set_up(other.model)
    other._robust_step.load_state(saved)
    assert all(torch.equal(value, other._robust_step.state()[name]) for name, value in saved.items())
    assert other.estimated_noise_rate == trainer.estimated_noise_rate
    assert not other._robust_step.scan_due(Progress(0.0, 1.0, 0))


def test_a_ledger_of_another_method_has_no_verdict():
    ledger = SampleLedger(5)
    assert not set(VERDICT) & set(ledger.columns) and not bool(ledger.distrusted().any())
    judged = SampleLedger(5, judged=True)
    assert set(VERDICT) <= set(judged.columns) and not bool(judged.distrusted().any())
    with pytest.raises(ValueError, match="has no label_wrong"):
        judged.load_state(ledger.state())


def test_a_later_look_refines_the_rate_in_force(tmp_path, monkeypatch):
    """The first look's rate is estimated, the second one's is told: the mean of what was in force and of what is seen now."""
    told, real = [], stage_module.labels_judged.judge_labels
    monkeypatch.setattr(stage_module.labels_judged, "judge_labels", lambda *a, **kw: told.append(kw["rest"]) or real(*a, **kw))
    refined, before = [], stage_module.labels_judged.refined_rate
    monkeypatch.setattr(
        stage_module.labels_judged, "refined_rate", lambda *given: refined.append((given[0], before(*given))) or refined[-1][1]
    )
    trainer = robust(tmp_path, data=images(64), method="auto", num_train_epochs=4)
    trainer.train()
    assert told[0] is None and len(told) == 2 and len(refined) == 1
    assert told[1] == refined[0][1] and refined[0][0].n == 64
    rest = trainer._robust_step.run.states["evidence"]["rest"].tolist()
    assert rest[:3] == pytest.approx([told[1].rate, told[1].low, told[1].high])
