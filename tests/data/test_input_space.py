"""The index follows its sample, and pixels are those of the normalisation."""

import functools

import torch
from helpers.processes import alone
from helpers.toy import CHANNELS, images, robust, vit

from robust_trainer.data.images import InputSpace, input_space


def test_index_follows_shuffling_groups_and_workers(tmp_path):
    """The recorded labels are those of the rows, whatever the order the sampler took."""

    def work(**extra):
        data = images(50)
        trainer = robust(tmp_path, data=data, method="standard", num_train_epochs=1, **extra)
        trainer.train()
        seen = trainer.ledger.seen > 0
        assert torch.equal(trainer.ledger.label[seen].long(), data["labels"][:][seen]) and int(seen.sum()) >= 48

    work()
    work(dataloader_drop_last=True)
    alone(functools.partial(work, dataloader_num_workers=1), tmp_path)  # the loader forks


def test_adversarial_inputs_reach_the_model_inside_ball_and_range(tmp_path):
    """Through the whole trainer, with unequal std: what the model sees is within eps pixels of the data."""
    mean, std, eps = [0.2, 0.5, 0.6], [0.1, 0.5, 0.9], 0.07
    m, s = (torch.tensor(v).view(1, CHANNELS, 1, 1) for v in (mean, std))
    pixels = images(24)["pixel_values"][:] * 0.5 + 0.5
    data = images(24).with_format(None).remove_columns("pixel_values").add_column("pixel_values", ((pixels - m) / s).tolist())
    seen = []
    model = vit()
    model.register_forward_pre_hook(
        lambda mod, args, kwargs: seen.append(kwargs["pixel_values"].detach()) if mod.training else None, with_kwargs=True
    )
    for scope in ("batch", "sample"):
        seen.clear()
        trainer = robust(
            tmp_path, model, data.with_format("torch"), method="at", scope=scope, eps=eps, steps=3, image_mean=mean, image_std=std,
            max_steps=3, objective="ce",
        )  # fmt: skip
        order = []
        collate = trainer.data_collator

        def watched(rows, collate=collate, order=order):
            batch = collate(rows)
            order.append(batch["pixel_values"])
            return batch

        trainer.data_collator = watched
        trainer.train()
        assert len(seen) == 3
        for adversarial, clean in zip(seen, order):
            moved = adversarial * s + m
            assert float((moved - (clean * s + m)).abs().max()) <= eps + 1e-5
            assert float(moved.min()) >= -1e-5 and float(moved.max()) <= 1 + 1e-5
            assert float((moved - (clean * s + m)).abs().mean()) > eps / 10


class Processor:
    def __init__(self, **settings):
        self.__dict__.update(settings)


def test_input_space_reads_the_processor():
    assert input_space(None) is None
    both = Processor(do_rescale=True, do_normalize=True, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])
    assert input_space(both) == InputSpace((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert input_space(Processor(image_processor=both)) == input_space(both)
    assert input_space(Processor(do_rescale=True, do_normalize=False, image_mean=[0.5], image_std=[0.5])) == InputSpace()
    assert input_space(Processor(do_rescale=False, do_normalize=True, image_mean=[0.5], image_std=[0.5])) is None
    assert input_space(Processor(data_config={"mean": (0.5,), "std": (0.2,)})) == InputSpace((0.5,), (0.2,))
    assert input_space(both, [0.5], [0.5]) == InputSpace((0.5,), (0.5,))
