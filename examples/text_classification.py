"""Train a text classifier by any method on any labelled texts, and see which labels it distrusts.

python examples/text_classification.py examples/text_sst2.yaml --dataset path/to/folder --method prl --noise_rate 0.4
python examples/text_classification.py --dataset reviews.csv --model distilbert-base-uncased --output_dir out --method prl
"""

import os
import sys

from transformers import set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.audit import curves, write_audit_report
from robust_trainer.cli import (
    CorruptionOptions,
    DataOptions,
    ModelOptions,
    TextTransform,
    build_text_model,
    label_names,
    make_parser,
    parse,
    prepare,
)
from robust_trainer.evaluation import compute_accuracy


def main() -> None:
    parser = make_parser("text_classification", [DataOptions, CorruptionOptions, ModelOptions, RobustConfig], __doc__)
    parser.set_defaults(output_dir="robust_run", model="small-bert", remove_unused_columns=False, report_to="none")
    data, corruption, options, args = parse(parser, sys.argv[1:])
    set_seed(args.seed)

    # 1. data: columns text and label; with --corrupt some labels are made wrong for an experiment, yours may be suspect already
    found = prepare(data, corruption)
    train, names = found.train, label_names(found.train)

    # 2. model and tokenizer, which are any of transformers'
    model, tokenizer = build_text_model(
        options.model, names, train["text"], max_length=options.max_length, from_scratch=options.from_scratch,
        trust_remote_code=options.trust_remote_code,
    )  # fmt: skip
    transform = TextTransform(tokenizer)

    # 3. train: the Trainer's own arguments, and a method in args; batches are padded, as the tokenizer is processing_class
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=transform.apply_to(train), eval_dataset=transform.apply_to(found.test),
        processing_class=tokenizer, compute_metrics=compute_accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.log_metrics("eval", trainer.evaluate())

    # 4. which labels it distrusted: index is the row of the training data
    if trainer.ledger is not None and trainer.is_world_process_zero():
        distrusted = trainer.distrusted_samples()
        distrusted.to_csv(os.path.join(args.output_dir, "distrusted.csv"))
        print(f"{len(distrusted)} of {len(train)} labels distrusted, most suspicious first:")
        for row in distrusted.select(range(min(10, len(distrusted)))):
            given, seen = names[row["label"]], names[row["predicted"]]
            print(f"{row['mean_score']:.3f}  given {given}, predicted {seen}: {train[row['index']]['text']}")
        # more of it, with suggested labels, and a page to open
        page, figures = os.path.join(args.output_dir, "audit.html"), curves(trainer.state.log_history)
        report = write_audit_report(page, trainer.audit(), data=train, curves=figures)
        print(f"written: {report}")


if __name__ == "__main__":
    main()
