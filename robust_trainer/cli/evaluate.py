"""The subcommand evaluate: clean accuracy, what a trigger does, and robust accuracy under attacks, of a saved model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from ..attacks.autoattack import NAMES, check_name, read_eps
from ..attacks.records import processes, record_files
from ..corruptions import ATTACK_TARGET
from ..data.class_names import names_of
from ..data.load import TEST, label_names
from ..data.preprocess import kind_of, make_transform, model_channels, tell_unseen
from ..data.texts import tell_cut
from ..evaluation.accuracy import compute_accuracy, evaluate_backdoor
from ..evaluation.per_class import class_robustness
from ..evaluation.robustness import CLEAN, DEFAULT_EPS, WORST, Robustness, evaluate_robustness, show_eps
from ..models.peers import PeerModel
from ..models.pretrained import WORDS
from ..models.saved_networks import in_words, read_record
from ..models.zoo import load_model
from ..perturbations.norms import NORMS, find_norm
from ..reporting.atomic_files import write_json
from ..reporting.console import say, show
from ..reporting.figures import BLUE, GREEN, RED, new_figure, save_figure
from ..reporting.locks import hold
from ..reporting.results import environment, percent
from .craft_options import target_of
from .identity import check_model, check_same_split, is_other_data, run_id
from .kinds import CheckKind
from .options import CorruptionOptions, DataOptions
from .outputs import check_output_file
from .parser import make_parser, parse_for_run
from .stages import KnownClasses, prepare


@dataclass
class EvaluateOptions:
    """What `evaluate` measures."""

    _argument_group_name = "evaluation"

    run: str = field(default="robust_run", metadata={"help": "Folder with a saved model: the output_dir of a training."})
    batch_size: int = field(default=64, metadata={"help": "Samples per forward pass."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write. Default: evaluation.json in the run's folder."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that the run's model brings; only where its author is trusted."}
    )


@dataclass
class AttackOptions:
    """Which attacks, and how far they may go."""

    _argument_group_name = "attacks"

    attacks: list[str] | None = field(
        default=None,
        metadata={"help": f"Any of {', '.join(NAMES)}; pgd-50x10 is pgd-50 with 10 restarts. Default: no attack."},
    )
    eps: str | None = field(default=None, metadata={"help": "Radius in [0, 1] pixels, as 8/255 or 0.03. Default for linf: 8/255."})
    norm: str = field(default="linf", metadata={"help": f"One of {', '.join(NORMS)}."})
    per_class: str | None = field(
        default=None,
        metadata={"help": "Also PGD-40 class by class, untargeted and towards cyclic (the next class), or a class number or name."},
    )
    attack_seed: int = field(default=0, metadata={"help": "Seed of the attacks' random numbers."})
    resume: bool = field(default=False, metadata={"help": "Go on with an interrupted evaluation of the same settings."})

    def radius(self) -> float | None:
        """The radius, None without attacks. Raises a one-line ``ValueError`` for wrong settings, before any work is done."""
        if self.attacks is None and not (self.per_class is not None and not self.resume):
            if self.eps is not None or self.resume:
                option = f"eps={self.eps!r}" if self.eps is not None else "resume"
                raise ValueError(f"{option} is for attacks: give some, for instance --attacks pgd-20 cw-20 autoattack.")
            return None
        for name in self.attacks or ():
            check_name(name)
        if self.eps is None and self.norm not in DEFAULT_EPS:
            usual = find_norm(self.norm).usual
            raise ValueError(f"norm={self.norm!r} needs eps, the radius in [0, 1] pixels: give for instance --eps {usual}.")
        return read_eps(DEFAULT_EPS.get(self.norm, 1) if self.eps is None else self.eps, self.norm)


def evaluate(argv: Sequence[str]) -> None:
    """robust-trainer evaluate: clean accuracy, poison accuracy and attack success rate, and robust accuracy, of a saved model.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Evaluate a saved model. Data and trigger are those of the run, where its results.json tells, unless given here. "
        "Attacks: " + "; ".join(f"{name}: {summary}" for name, summary in NAMES.items()) + "."
    )
    parser = make_parser("evaluate", [EvaluateOptions, AttackOptions, DataOptions, CorruptionOptions], about, first="run_folder")
    stored, _, (options, attack, data, corruption) = parse_for_run(parser, argv, (DataOptions, CorruptionOptions))
    if corruption.wanted and corruption.trigger() is None:
        corruption = CorruptionOptions()  # wrong labels were for training alone
    if options.batch_size < 1:
        raise ValueError(f"batch_size={options.batch_size} must be at least 1: give for instance 64.")
    radius = attack.radius()
    path = Path(options.output or Path(options.run) / "evaluation.json")
    rank, world = processes()
    model, processor = load_model(options.run, options.trust_remote_code)
    saved = read_record(options.run)
    check_output_file(str(path), "output")
    hold(path.parent, f".{path.name}.lock")
    check_model(options.run, stored)
    known = KnownClasses(names_of(model.config), f"the model of run={options.run!r}")
    check = CheckKind((attack,), f"run={options.run!r}", {kind_of(processor)}, trained=True)
    prepared = prepare(data, corruption, classes=known, check=check, whole=is_other_data(data, stored))
    check_same_split(options.run, stored, argv, prepared.test, "test_fingerprint")
    names = label_names(prepared.test)
    if model.config.num_labels != len(names):
        raise ValueError(
            f"{known.source} knows {model.config.num_labels} classes but dataset={data.dataset!r} has {len(names)}: "
            "give the data set that it was trained on."
        )
    towards = None if attack.per_class is None else target_of(attack.per_class, names, "per_class")
    transform = make_transform(model, processor)
    if prepared.kind == "text":
        tell_cut({TEST: prepared.test}, processor)
    elif prepared.kind == "image":
        tell_unseen({TEST: prepared.test}, model_channels(model))
    clean = transform.apply_to(prepared.test)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=options.batch_size, remove_unused_columns=False, report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(), use_cpu=world > 1 and not torch.accelerator.is_available(),
        )  # fmt: skip
        more: dict[str, Any] = {"args": args, "compute_metrics": compute_accuracy}
        if prepared.kind != "image":
            more["data_collator"] = DataCollatorWithPadding(processor)
        trainer = Trainer(model, **more)
        if prepared.triggered is not None and ATTACK_TARGET in prepared.triggered.column_names:
            figures = evaluate_backdoor(trainer, clean, transform.apply_to(prepared.triggered))
        else:
            metrics = trainer.predict(clean).metrics or {}
            figures = {"clean_accuracy": metrics["test_accuracy"], "n": len(clean)}
        if saved is not None:
            alone, _ = load_model(options.run, options.trust_remote_code, alone=True)
            trainer = Trainer(alone, **more)
            figures["saved_model_accuracy"] = (trainer.predict(clean).metrics or {})["test_accuracy"]
    trigger = (prepared.corruption or {}).get("trigger", "as saved" if prepared.triggered is not None else None)
    content: dict[str, Any] = {
        "run": options.run, "id": run_id(stored), "dataset": data.dataset, "trigger": trigger, **figures,
        "environment": environment(),
    }  # fmt: skip
    if isinstance(model, PeerModel):
        content |= {"networks": len(model.peers), "export": saved}
    robustness = None
    if radius is not None and attack.attacks is not None:
        robustness = _attacked(model, clean, processor, attack, radius, options, _beside(path, options.output, "robustness.jsonl"))
        content["robustness"] = robustness.to_dict()
    if rank > 0:
        return
    classes = None
    if radius is not None and towards is not None:
        classes = class_robustness(
            model, prepared.test, radius, norm=attack.norm, target=towards, batch_size=options.batch_size,
            processing_class=processor,
        )  # fmt: skip
        content["per_class"] = classes.to_dict()
    write_json(path, content)
    say(show(["figure", "value"], [[name, percent(value) + " %"] for name, value in figures.items() if name != "n"]))
    written = str(path)
    if robustness is not None:
        say("\n" + robustness.table())
        written += f", {plot(robustness, _beside(path, options.output, 'robustness.png'))}"
    if classes is not None:
        say(f"\nPGD-40 class by class, {classes.norm}, eps {show_eps(classes.eps)}\n{show(*classes.rows())}")
    if isinstance(model, PeerModel):
        one = "" if saved is None else f"; saved_model_accuracy: of {in_words(saved)} alone, which model.safetensors holds"
        say(f"the figures are of the mean of {len(model.peers)} networks{one}")
    say(f"{figures['n']} test {WORDS[prepared.kind]} of {data.dataset}, trigger {trigger or 'none'}; written to {written}")


def _attacked(
    model: Any, data: Any, processor: Any, attack: AttackOptions, radius: float, options: EvaluateOptions, records: Path
) -> Robustness:
    rank, world = processes()
    if not attack.resume and rank == 0:
        for file in record_files(records):
            file.unlink()
    if world > 1:
        torch.distributed.barrier()
    try:
        return evaluate_robustness(
            model, data, attack.attacks or (), radius, attack.norm, processing_class=processor, batch_size=options.batch_size,
            seed=attack.attack_seed, resume_from=records,
        )  # fmt: skip
    except KeyboardInterrupt:
        say(f"what was found so far is in {records}: the same command with --resume goes on from there")
        raise


def plot(robustness: Robustness, path: str | Path) -> Path:
    """Draws a bar per attack between clean accuracy and worst case, in percent, as PNG, and returns its path.

    Args:
        robustness: The result of an evaluation.
        path: File to write.
    """
    bars = {CLEAN: robustness.clean_accuracy, **robustness.accuracies, WORST: robustness.worst_case}
    colours = [GREEN, *[BLUE] * len(robustness.accuracies), RED]
    figure = new_figure(max(4.5, 1.6 + 0.8 * len(bars)), 3.6)
    axes = figure.add_subplot()
    drawn = axes.bar(range(len(bars)), [100 * value for value in bars.values()], color=colours, width=0.7)
    axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=9)
    axes.axhline(100 * robustness.worst_case, color=RED, linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", rotation_mode="anchor")
    axes.set(
        ylabel="accuracy, %", ylim=(0, 108), title=f"{robustness.norm}, eps {show_eps(robustness.eps)}, {robustness.n} samples"
    )
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _beside(path: Path, output: str | None, name: str) -> Path:
    """A file in the JSON's folder; called after it where the user named it."""
    return path.with_name(name if output is None else f"{path.stem}_{name}")
