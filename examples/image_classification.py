"""Fine-tune or train an image classifier by any method on any data set.

python examples/image_classification.py examples/digits_blend.yaml
python examples/image_classification.py examples/digits_blend.yaml --method prl-at --noise_rate 0.25
accelerate launch examples/image_classification.py examples/vit_folder.yaml --dataset path/to/images
"""

import sys

from transformers import set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.cli import (
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
)
from robust_trainer.corruptions import poison, trigger_all
from robust_trainer.evaluation import compute_accuracy, evaluate_backdoor


def main() -> None:
    parser = make_parser("image_classification", [DataOptions, CorruptionOptions, ModelOptions, RobustConfig], __doc__)
    parser.set_defaults(output_dir="robust_run", remove_unused_columns=False, report_to="none", method="auto")
    data, corruption, options, args = parse(parser, sys.argv[1:])
    set_seed(args.seed)

    # 1. data: poisoned for the experiment; leave this out when your own data is suspect already
    dataset = load_data(data.dataset, image_column=data.image_column, label_column=data.label_column,
                        max_train_samples=data.max_train_samples, max_test_samples=data.max_test_samples)  # fmt: skip
    train, test, triggered = dataset["train"], dataset["test"], dataset.get("test_triggered")
    trigger, rule = corruption.trigger(), corruption.rule()
    if trigger is not None:
        train = poison(train, trigger=trigger, rate=corruption.corrupt_rate, label_rule=rule, seed=corruption.corrupt_seed)
        triggered = trigger_all(test, trigger, label_rule=rule)

    # 2. model and image processor
    channels, side = image_shape(train)
    model, processor = build_model(options.model, label_names(train), channels=channels,
                                   image_size=options.image_size or min(side, 64), from_scratch=options.from_scratch)  # fmt: skip
    transform = ImageTransform(processor, model_channels(model))
    evaluation = {"clean": transform.apply_to(test)}
    if triggered is not None:
        evaluation["poison"] = transform.apply_to(triggered)

    # 3. train: the Trainer's own arguments, and a method in args
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=transform.apply_to(train), eval_dataset=evaluation,
        processing_class=processor, compute_metrics=compute_accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()

    # 4. figures, and which samples it doubted
    metrics = trainer.evaluate()
    if triggered is not None:
        metrics = evaluate_backdoor(trainer, evaluation["clean"], evaluation["poison"])
    trainer.log_metrics("eval", metrics)
    if trainer.ledger is not None and trainer.is_world_process_zero():
        print(trainer.distrusted_samples().select_columns(["index", "label", "predicted", "mean_score"]).to_pandas().head(10))


if __name__ == "__main__":
    main()
