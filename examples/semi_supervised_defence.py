"""Defend against a backdoor with images that have no labels: SimCLR on all images, then a robust method on the head.

python examples/semi_supervised_defence.py examples/simclr_digits.yaml
python examples/semi_supervised_defence.py examples/simclr_digits.yaml --method spl-simclr-sn --spectral_cap 2
"""

import sys

from transformers import set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.cli import (
    ContrastiveOptions,
    CorruptionOptions,
    DataOptions,
    ImageTransform,
    ModelOptions,
    build_model,
    image_shape,
    label_names,
    load_data,
    make_parser,
    model_channels,
    parse,
    unlabelled_images,
)
from robust_trainer.contrastive import ContrastiveConfig, ContrastiveTrainer
from robust_trainer.corruptions import poison, trigger_all
from robust_trainer.evaluation import compute_accuracy, evaluate_backdoor


def main() -> None:
    kinds = [DataOptions, CorruptionOptions, ModelOptions, ContrastiveOptions, RobustConfig]
    parser = make_parser("semi_supervised_defence", kinds, __doc__)
    parser.set_defaults(output_dir="robust_run", remove_unused_columns=False, report_to="none")
    data, corruption, options, contrastive, args = parse(parser, sys.argv[1:])
    epochs = contrastive.epochs(args, options)
    set_seed(args.seed)

    # 1. data: a few labelled images, some of them poisoned, and more without labels
    dataset = load_data(data.dataset, image_column=data.image_column, label_column=data.label_column,
                        max_train_samples=data.max_train_samples, max_test_samples=data.max_test_samples)  # fmt: skip
    train, test, triggered = dataset["train"], dataset["test"], dataset.get("test_triggered")
    trigger, rule = corruption.trigger(), corruption.rule()
    if trigger is not None:
        train = poison(train, trigger=trigger, rate=corruption.corrupt_rate, label_rule=rule, seed=corruption.corrupt_seed)
        triggered = trigger_all(test, trigger, label_rule=rule)
    extra = unlabelled_images(contrastive, data)

    # 2. model and image processor
    channels, side = image_shape(train)
    model, processor = build_model(options.model, label_names(train), channels=channels,
                                   image_size=options.image_size or min(side, 64), from_scratch=options.from_scratch)  # fmt: skip
    transform = ImageTransform(processor, model_channels(model))

    # 3. stage one: the backbone learns from all images, poisoned ones too, without any label
    if epochs:
        settings = ContrastiveConfig(
            output_dir=f"{args.output_dir}/simclr", num_train_epochs=epochs, save_strategy="no", report_to="none", seed=args.seed,
            per_device_train_batch_size=contrastive.contrastive_batch_size, learning_rate=contrastive.contrastive_learning_rate,
            temperature=contrastive.contrastive_temperature, views=contrastive.contrastive_views, lr_scheduler_type="cosine",
            use_cpu=args.use_cpu, logging_strategy="epoch", disable_tqdm=args.disable_tqdm,
        )  # fmt: skip
        first = ContrastiveTrainer(
            model, settings, train_dataset=transform.apply_to(train),
            extra_dataset=None if extra is None else transform.apply_to(extra), processing_class=processor,
        )  # fmt: skip
        first.train()

    # 4. stage two: the method in args trains the head of the same model
    evaluation = {"clean": transform.apply_to(test)}
    if triggered is not None:
        evaluation["poison"] = transform.apply_to(triggered)
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=transform.apply_to(train), eval_dataset=evaluation,
        processing_class=processor, compute_metrics=compute_accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()

    # 5. figures
    metrics = trainer.evaluate()
    if triggered is not None:
        metrics = evaluate_backdoor(trainer, evaluation["clean"], evaluation["poison"])
    trainer.log_metrics("eval", metrics)


if __name__ == "__main__":
    main()
