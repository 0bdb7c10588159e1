"""Adversarial training on noisy labels, with double overfitting tracked and the best checkpoint chosen on held-out data.

python examples/adversarial_training.py         (digits, 40 % wrong labels, NRAT, no network; about a minute on two cores)
python examples/adversarial_training.py --method pgd-at --eps 16/255 --num_train_epochs 30     (shows double overfitting)
"""

import sys
from dataclasses import dataclass, field

import torch
from transformers import PrinterCallback, set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.callbacks import RobustnessCallback, hold_out
from robust_trainer.cli import (
    CorruptionOptions,
    DataOptions,
    ImageTransform,
    ModelOptions,
    build_model,
    image_shape,
    label_names,
    make_parser,
    model_channels,
    parse,
    prepare,
)


@dataclass
class TrackingOptions:
    """What is measured, and when."""

    held_out: float = field(default=0.15, metadata={"help": "Share of the training data that chooses the best checkpoint."})
    every_epochs: float = field(default=1.0, metadata={"help": "Epochs between two measurements."})
    attacks_during: list[str] = field(default_factory=lambda: ["pgd-10"], metadata={"help": "Attacks at each measurement."})
    attacks_final: list[str] = field(
        default_factory=lambda: ["pgd-20", "cw-20", "apgd-ce"], metadata={"help": "On last and best at the end; or autoattack."}
    )
    final_samples: int | None = field(default=None, metadata={"help": "Test images at the end. Default: all."})


def show(figures: dict[str, float]) -> None:
    print(", ".join(f"{name.replace('_', ' ').removesuffix(' accuracy')} {100 * value:.1f} %" for name, value in figures.items()))


def main() -> None:
    parser = make_parser(
        "adversarial_training", [DataOptions, CorruptionOptions, ModelOptions, TrackingOptions, RobustConfig], __doc__
    )
    parser.set_defaults(
        output_dir="runs/adversarial_training", method="nrat", corrupt="symmetric", corrupt_rate=0.4, learning_rate=2e-3,
        num_train_epochs=12, per_device_train_batch_size=64, remove_unused_columns=False, report_to="none", save_strategy="no",
        logging_strategy="epoch", dataloader_pin_memory=torch.cuda.is_available(), disable_tqdm=True,
    )  # fmt: skip
    data, corruption, options, tracking, args = parse(parser, sys.argv[1:])
    set_seed(args.seed)

    # 1. data: wrong labels in the training part only; some of it, as noisy as the rest, is held out to choose by
    found = prepare(data, corruption)
    train, held_out = hold_out(found.train, tracking.held_out, seed=args.seed)

    # 2. model and image processor
    channels, side = image_shape(train)
    model, processor = build_model(options.model, label_names(train), channels=channels,
                                   image_size=options.image_size or min(side, 64), from_scratch=options.from_scratch)  # fmt: skip
    transform = ImageTransform(processor, model_channels(model))

    # 3. train: the callback measures on the way, keeps the best weights in output_dir/best, and evaluates both at the end
    trainer = RobustTrainer(model=model, args=args, train_dataset=transform.apply_to(train), processing_class=processor)
    settings = recipe.settings if (recipe := trainer.recipe()) is not None else {}
    callback = RobustnessCallback(
        transform.apply_to(found.test), held_out=transform.apply_to(held_out), every_epochs=tracking.every_epochs,
        attacks_during=tracking.attacks_during, attacks_final=tracking.attacks_final, final_samples=tracking.final_samples,
        eps=settings.get("eps", 8 / 255), norm=settings.get("norm", "linf"), log=show if args.process_index == 0 else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()

    # 4. best and last, and the gap between them; the curves are in output_dir/robustness_curve.png
    if trainer.is_world_process_zero():
        print(callback.table())


if __name__ == "__main__":
    main()
