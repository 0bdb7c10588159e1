"""A run as a list of stages: each adds to one state what it makes of what is there; here those that prepare the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import datasets

from ..corruptions import (
    IS_CORRUPTED,
    IS_COVER,
    TrainedTrigger,
    corrupt_labels,
    nominal_rates,
    poison,
    realised_rates,
    trigger_all,
    use_noisy_labels,
)
from ..data.audio import AudioTransform
from ..data.augmentation.squeezing import Squeeze, squeeze_images
from ..data.columns import read_column
from ..data.load import TEST, TRAIN, TRIGGERED, load_data
from ..data.preprocess import ImageTransform, input_kind
from ..data.texts import TextTransform
from ..evaluation.path_table import PathLengths
from ..trainer import RobustTrainer
from .kinds import NO_CHECK, CheckKind
from .options import CorruptionOptions, DataOptions, PreprocessOptions


@dataclass
class RunState:
    """What the stages of a run have made so far; None for what is not there.

    Attributes:
        splits: train and test, and test_triggered where there is a trigger; columns image, audio or text, and label.
        corruption: What was corrupted, with nominal and realised rates.
        poison: The record of an availability poison.
        trigger: A trigger that was trained, None for others.
        paths: Path lengths by which crafted label noise was chosen.
        squeeze: What was done to the training images.
        unlabelled: More images, for the pre-training alone.
        model: The network; processor: its image processor, tokenizer or feature extractor; transform: rows of the splits to its
            inputs.
        pretraining: The record of a first stage of training.
        trainer: After training.
        record: Settings, curves and figures of the training.
    """

    splits: datasets.DatasetDict = field(default_factory=datasets.DatasetDict)
    corruption: dict[str, Any] | None = None
    poison: dict[str, Any] | None = None
    trigger: TrainedTrigger | None = None
    paths: PathLengths | None = None
    squeeze: Squeeze | None = None
    unlabelled: datasets.Dataset | None = None
    model: Any = None
    processor: Any = None
    transform: ImageTransform | TextTransform | AudioTransform | None = None
    pretraining: dict[str, Any] | None = None
    trainer: RobustTrainer | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def train(self) -> datasets.Dataset:
        """The training split."""
        return self.splits[TRAIN]

    @property
    def test(self) -> datasets.Dataset:
        """The test split."""
        return self.splits[TEST]

    @property
    def triggered(self) -> datasets.Dataset | None:
        """The test split with the trigger on every image."""
        return self.splits.get(TRIGGERED)

    @property
    def kind(self) -> str:
        """What the data are, image, text or audio."""
        return input_kind(self.train)


class Stage(Protocol):
    """One part of a run. What it is made from is checked when it is made, so before the first stage runs."""

    def __call__(self, state: RunState) -> None:
        """Adds to the state what the stage makes."""


def run_stages(stages: Iterable[Stage], state: RunState | None = None) -> RunState:
    """Returns the state after the stages, run in order.

    Args:
        stages: What to do.
        state: What earlier stages made; None for a new run.
    """
    state = RunState() if state is None else state
    for stage in stages:
        stage(state)
    return state


@dataclass(frozen=True)
class KnownClasses:
    """The classes of a model by which data are numbered.

    Attributes:
        names: by number; None where the model has none.
        source: where they come from, for messages.
        required: whether the data may have no other classes; else the names count only where the data have the same.
    """

    names: Sequence[str] | None = None
    source: str = "the model"
    required: bool = True


def data_stages(
    data: DataOptions, corruption: CorruptionOptions, preprocess: PreprocessOptions | None = None, *crafting: Stage,
    classes: KnownClasses = KnownClasses(), check: CheckKind = NO_CHECK, whole: bool = False,
) -> list[Stage]:  # fmt: skip
    """Returns the stages that prepare data: loaded, crafted noise and poisons, corrupted, and the training images squeezed at last.

    Args:
        data: Which images or texts.
        corruption: A trigger or wrong labels.
        preprocess: What is done to the training images; None for nothing.
        crafting: Stages that work on the clean splits.
        classes: Of a model that the data are for.
        check: What else has to fit images, or texts, as the data are.
        whole: Without a test split all rows are to be tested, and none are trained on.

    Raises:
        ValueError: For settings out of range.
    """
    corrupt = CorruptData(corruption)
    squeeze = [] if preprocess is None else [SqueezeImages(preprocess)]
    options = (corruption, *(() if preprocess is None else (preprocess,)), *check.options)
    load = LoadData(data, corruption.given(), classes, whole)
    return [load, replace(check, options=options), *crafting, corrupt, *squeeze]


def prepare(
    data: DataOptions, corruption: CorruptionOptions, preprocess: PreprocessOptions | None = None,
    classes: KnownClasses = KnownClasses(), check: CheckKind = NO_CHECK, whole: bool = False,
) -> RunState:  # fmt: skip
    """Returns the state after `data_stages`; a data set that was saved poisoned comes with its own triggered test set.

    Args:
        data: Which images or texts.
        corruption: A trigger or wrong labels.
        preprocess: What is done to the training images; None for nothing.
        classes: Of a model that the data are for.
        check: As of `data_stages`.
        whole: As of `data_stages`.

    Raises:
        ValueError: For settings out of range, and for a second corruption of a corrupted data set.
    """
    return run_stages(data_stages(data, corruption, preprocess, classes=classes, check=check, whole=whole))


@dataclass(frozen=True)
class LoadData:
    """Loads the splits.

    Args:
        data: Which.
        corrupting: Name and value of the option that is going to corrupt the labels, None for none; a data set that is corrupted
            already is refused then, before anything long begins.
        classes: Of a model that the data are for.
        whole: Without a test split all rows are to be tested, and none are trained on.
        audited: Nothing is trained or tested: without a test split there is none, and rows may have neither image, sound nor text.
    """

    data: DataOptions
    corrupting: tuple[str, Any] | None = None
    classes: KnownClasses = KnownClasses()
    whole: bool = False
    audited: bool = False

    def __post_init__(self) -> None:
        self.data.source()  # raises where no data set is named

    def __call__(self, state: RunState) -> None:
        """Sets ``state.splits``, and ``state.corruption`` of a data set that was saved corrupted."""
        data = self.data
        state.splits = load_data(
            data.source(), config=data.dataset_config, image_column=data.image_column, text_column=data.text_column,
            audio_column=data.audio_column, label_column=data.label_column, test_split=data.test_split,
            max_train_samples=data.max_train_samples, max_test_samples=data.max_test_samples, seed=data.split_seed,
            names=self.classes.names, source=self.classes.source, names_required=self.classes.required,
            others=[value for name, value in [self.corrupting or ("", "")] if name == "noisy_label_column"],
            hold_out=None if self.audited else not self.whole, inputs=not self.audited,
        )  # fmt: skip
        if IS_CORRUPTED not in state.train.column_names:
            return
        if self.corrupting is not None:
            name, value = self.corrupting
            raise ValueError(
                f"dataset={data.source()!r} is corrupted already and {name}={value!r} would do it twice: drop {name}, or start "
                "from the clean data set."
            )
        state.corruption = {"corrupt": "as saved", **realised_rates(state.train)}


@dataclass(frozen=True)
class CorruptData:
    """Puts the trigger on training samples and all test images, or makes training labels wrong and leaves the test set alone."""

    options: CorruptionOptions

    def __post_init__(self) -> None:
        self.options.trigger(), self.options.rule(), self.options.noise()  # each raises for settings out of range

    def __call__(self, state: RunState) -> None:
        """Changes the splits and sets ``state.corruption``."""
        options = self.options
        trigger, rule, noise = options.trigger(), options.rule(), options.noise()
        seed = options.corrupt_seed
        record: dict[str, Any] = {"corrupt": options.corrupt}
        nominal: Any = None
        train = state.train
        if trigger is not None:
            nominal = options.corrupt_rate
            train = poison(train, trigger=trigger, rate=nominal, label_rule=rule, seed=seed, cover_rate=options.cover_rate)
            if TEST in state.splits:
                state.splits[TRIGGERED] = trigger_all(state.test, trigger, label_rule=rule)
            record |= {"trigger": options.describe(), "seed": seed}
            if IS_COVER in train.column_names:
                record["covers"] = int(read_column(train, IS_COVER).sum())
        elif noise is not None:
            nominal = nominal_rates(train, **noise)
            train = corrupt_labels(train, **noise, seed=seed, exact=options.noise_form == "exact")
            record |= {"noise": options.describe(), "seed": seed}
        elif options.noisy_label_column is not None:
            others = [c for c in train.column_names if c not in ("image", "text", "audio", "label")]
            if options.noisy_label_column not in others:
                raise ValueError(
                    f"noisy_label_column={options.noisy_label_column!r} is not among the columns {others} beside inputs and label: "
                    "name one of them."
                )
            train = use_noisy_labels(train, options.noisy_label_column)
            record = {"corrupt": "real", "noise": options.describe()}
        else:
            return
        state.splits[TRAIN] = train
        state.corruption = {**record, **realised_rates(train, nominal=nominal)}


@dataclass(frozen=True)
class SqueezeImages:
    """Squeezes the training images, corrupted ones too, and no others."""

    options: PreprocessOptions

    def __post_init__(self) -> None:
        self.options.squeezer()  # raises for settings out of range

    def __call__(self, state: RunState) -> None:
        """Changes the training split and sets ``state.squeeze``."""
        state.squeeze = self.options.squeezer()
        if state.squeeze is not None:
            state.splits[TRAIN] = squeeze_images(state.train, state.squeeze, image_column="image")
