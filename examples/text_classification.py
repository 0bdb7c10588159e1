"""Train a text classifier by any method on any labelled sentences, and see which labels it distrusts.

python examples/text_classification.py examples/text_sst2.yaml --dataset path/to/folder --method prl --noise_rate 0.4
python examples/text_classification.py --dataset reviews.csv --model distilbert-base-uncased --output_dir out --method prl
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import datasets
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    set_seed,
)

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.audit import curves, write_audit_report
from robust_trainer.cli import make_parser, parse
from robust_trainer.corruptions import corrupt_labels
from robust_trainer.evaluation import compute_accuracy

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@dataclass
class TextOptions:
    """Which sentences, which network, and wrong labels for an experiment."""

    dataset: str = field(metadata={"help": "A .csv or .parquet file, a folder of them (train, validation or test), or a hub name."})
    text_column: str = field(default="text", metadata={"help": "Column of the sentences."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes: names or numbers."})
    model: str = field(default="tiny", metadata={"help": "A model's hub name or folder; tiny: a 2-layer BERT from scratch."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run Python code that the model brings."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the tiny BERT."})
    max_length: int = field(default=64, metadata={"help": "Tokens of a sentence that are read."})
    corrupt: str = field(default="none", metadata={"help": "Wrong labels to train on: none, symmetric, pairflip, ..."})
    corrupt_rate: float = field(default=0.4, metadata={"help": "Share of the training labels that are made wrong, [0, 1)."})


def load(options: TextOptions) -> datasets.DatasetDict:
    """Splits train and test with columns text and label (a ClassLabel)."""
    kind = os.path.splitext(options.dataset)[1].strip(".")
    files = (kind, None, None, options.dataset) if kind in ("csv", "parquet") else (options.dataset,)
    found = datasets.load_dataset(*files)
    test = next((name for name in ("validation", "test") if name in found), None)
    parts = {"train": found["train"], "test": found[test]} if test else found["train"].train_test_split(0.2, seed=0)
    data = datasets.DatasetDict(dict(parts)).select_columns([options.text_column, options.label_column])
    data = data.rename_columns({a: b for a, b in ((options.text_column, "text"), (options.label_column, "label")) if a != b})
    if not isinstance(data["train"].features["label"], datasets.ClassLabel):
        names = [str(label) for label in sorted({label for part in data.values() for label in part.unique("label")})]
        data = data.cast_column("label", datasets.Value("string")).cast_column("label", datasets.ClassLabel(names=names))
    return data


def train_tokenizer(sentences: Any, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece tokenizer of at most 8,000 pieces, learned from the training text."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(sentences, trainers.WordPieceTrainer(vocab_size=8000, special_tokens=list(SPECIAL.values())))
    cls, sep = (("[CLS]", pieces.token_to_id("[CLS]")), ("[SEP]", pieces.token_to_id("[SEP]")))
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[cls, sep])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=max_length, **SPECIAL)


def main() -> None:
    parser = make_parser("text_classification", [TextOptions, RobustConfig], __doc__)
    parser.set_defaults(output_dir="robust_run", report_to="none")
    options, args = parse(parser, sys.argv[1:])
    set_seed(args.seed)

    # 1. data: wrong labels for the experiment; leave them out when your own are suspect already
    data = load(options)
    train, test = data["train"], data["test"]
    if options.corrupt != "none":
        train = corrupt_labels(train, options.corrupt, rate=options.corrupt_rate, seed=args.seed)

    # 2. tokenizer and model
    names = train.features["label"].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if options.model == "tiny":
        tokenizer = train_tokenizer(train["text"], options.max_length)
        width = options.hidden_size
        size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=options.max_length, pad_token_id=0, **size, **labels)
        model = BertForSequenceClassification(config)
    else:
        trust = options.trust_remote_code  # false: refused in words, where nothing given asks on the terminal
        tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=trust)
        model = AutoModelForSequenceClassification.from_pretrained(options.model, trust_remote_code=trust, **labels)

    def tokenize(rows: dict[str, Any]) -> Any:
        return tokenizer(rows["text"], truncation=True, max_length=options.max_length, return_token_type_ids=False)

    # 3. train: the Trainer's own arguments, and a method in args
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=train.map(tokenize, batched=True), eval_dataset=test.map(tokenize, batched=True),
        data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer, compute_metrics=compute_accuracy,
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
