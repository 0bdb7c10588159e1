"""Sounds as a data set's inputs: found by feature or name, decoded to one channel, resampled, and made into the model's inputs.

A cell is what `datasets.Audio` holds, ``{"array": ..., "sampling_rate": ...}``, or a list of numbers. Files are decoded by the
decoder of `datasets` where torchcodec is installed; without it WAV files are read by SciPy and others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import gcd
from typing import Any

import datasets
import numpy as np
import torch
from PIL.Image import Image, fromarray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from ..reporting.safe_text import plain
from .columns import arrow_column, source_row

#: What a column of sounds is usually called.
AUDIO_NAMES = ("audio", "sound", "speech", "waveform", "wave", "recording", "clip", "input_values")
#: Samples of a sound at most: half an hour at 48 kHz.
MOST_SAMPLES = 90_000_000
#: Sounds that are decoded before anything long begins, spread evenly.
LOOKED_AT = 64
#: Samples of a window of the spectrum and from one to the next.
WINDOW, HOP = 512, 256
#: Each frequency's power over the windows is told by these quantiles: what is always there, the usual, the loud, the loudest.
QUANTILES = (0.1, 0.5, 0.9, 1.0)
#: Power below this, of sounds of about unit variance, is silence.
SILENCE = 1e-6
_MEND = "give WAV files, a column of {'array', 'sampling_rate'}, or install torchcodec (pip install torchcodec) and FFmpeg"


class AudioError(ValueError):
    """A sound that cannot be used, in one line."""


def is_audio(feature: Any, name: str = "") -> bool:
    """Returns whether a column holds sounds: an Audio feature, arrays with a sampling rate, or lists of floats with a usual name.

    Args:
        feature: Of the data set.
        name: Of the column.
    """
    if isinstance(feature, datasets.Audio):
        return True
    if isinstance(feature, Mapping):
        stored = name.lower() in AUDIO_NAMES and set(feature) == {"bytes", "path"}
        return stored or {"array", "sampling_rate"} <= set(feature)
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    numbers = isinstance(inner, datasets.Value) and inner.dtype.startswith(("float", "int"))
    return name.lower() in AUDIO_NAMES and numbers


def audio_columns(dataset: datasets.Dataset) -> list[str]:
    """Returns the columns that hold sounds.

    Args:
        dataset: A `datasets.Dataset`.
    """
    return [name for name, feature in dataset.features.items() if is_audio(feature, name)]


def audio_column(dataset: datasets.Dataset, name: str | None = None) -> str:
    """Returns the column that holds the sounds: the named one, else the only one, of several the one with a usual name.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column; None: to be found.

    Raises:
        ValueError: Listing the columns, where there is none or no single one, and where the named one holds no sounds.
    """
    columns = list(dataset.column_names)
    if name is not None:
        if name not in columns:
            raise ValueError(f"audio_column={name!r} is not in the data set: choose one of {columns}.")
        if not is_audio(dataset.features[name], "audio"):
            kind = dataset.features[name]
            raise ValueError(f"audio_column={name!r} is {kind}, expected Audio, arrays with a sampling_rate, or lists of floats.")
        return name
    found = audio_columns(dataset)
    usual = [c for c in found if c.lower() in AUDIO_NAMES]
    chosen = usual if len(found) > 1 else found
    if len(chosen) != 1:
        which = f"{' or '.join(map(repr, found))} may hold the sounds" if found else "no column of sounds is there"
        raise ValueError(f"{which}, of columns {columns}: set audio_column.")
    return chosen[0]


def check_sounds(dataset: datasets.Dataset, where: str = "", name: str = "audio", column: str = "audio") -> None:
    """Raises a one-line ``ValueError`` for rows without a sound, and for what of some rows, spread evenly, cannot be decoded.

    Args:
        dataset: A `datasets.Dataset` with rows.
        where: What begins the message, as ``split 'test': ``.
        name: Of the column as its user knows it, for the message.
        column: Of the sounds.

    Raises:
        ValueError: Naming the first such row.
    """
    part = undecoded_audio(dataset.with_format(None).select_columns([column]))
    cells = arrow_column(part, column)
    if cells.null_count:
        row = int(cells.is_null().index(True).as_py())
        raise ValueError(f"{where}'{name}' is missing in row {source_row(dataset, row)}: take such rows out.")
    for row in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            decode_audio(part[row][column])
        except AudioError as error:
            raise AudioError(f"{where}'{name}' in row {source_row(dataset, row)}: {error}") from None


def undecoded_audio(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns the data set with its Audio columns as ``{"bytes": ..., "path": ...}``, so that `decode_audio` alone decodes them.

    Args:
        dataset: A `datasets.Dataset`; its format is kept.
    """
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio) and feature.decode:
            dataset = dataset.cast_column(name, replace(feature, decode=False))
    return dataset


def decode_audio(value: Any, rate: int | None = None, assumed: int | None = None) -> tuple[np.ndarray, int]:
    """Returns the sound of a cell, one channel (T,) float32 (files of integers in [-1, 1]), and its sampling rate in Hz.

    Args:
        value: ``{"bytes": ..., "path": ...}`` as `datasets.Audio` stores one, a decoder as it gives one,
            ``{"array": ..., "sampling_rate": ...}``, or an array; arrays are (T,) or (channels, T).
        rate: It is resampled to, in Hz; None: as it is.
        assumed: Of numbers that come without a rate, in Hz; None: ``rate``, else 16,000.

    Raises:
        AudioError: For what is missing, no sound, empty, too long, or not finite; and files that need a decoder that is not there.
    """
    if value is None:
        raise AudioError("audio is missing (None): filter such rows out.")
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        array, own = samples.data, int(samples.sample_rate)
    elif isinstance(value, Mapping) and value.get("array") is not None:
        array, own = value["array"], _rate(value.get("sampling_rate"))
    elif isinstance(value, Mapping):
        array, own = _read(value)
    else:
        array, own = value, _rate(assumed or rate or 16_000)
    wave = _one_channel(array)
    return (wave, own) if rate is None or rate == own else (resampled(wave, own, rate), rate)


def resampled(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Returns a sound (T,) at another sampling rate, by a polyphase filter (`scipy.signal.resample_poly`).

    Args:
        wave: (T,).
        rate: Of it, in Hz.
        to: Of what is returned, in Hz.
    """
    if rate == to:
        return wave
    common = gcd(rate, to)
    return resample_poly(wave, to // common, rate // common).astype(np.float32)


def encode_wav(wave: np.ndarray, rate: int) -> dict[str, Any]:
    """Returns a sound as `datasets.Audio` stores one: a WAV file's bytes, 16-bit PCM, clipped to [-1, 1].

    Args:
        wave: (T,) in [-1, 1].
        rate: In Hz.
    """
    buffer = BytesIO()
    wavfile.write(buffer, rate, np.rint(np.clip(wave, -1.0, 32767 / 32768) * 32768).astype(np.int16))
    return {"bytes": buffer.getvalue(), "path": None}


def _rate(rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer | float) or rate != int(rate) or not 0 < rate <= 1_000_000:
        raise AudioError(f"sampling_rate is {rate!r}, expected Hz, a whole number as 16000: give it.")
    return int(rate)


def _read(value: Mapping[str, Any]) -> tuple[Any, int]:
    """The samples and the rate of an encoded sound."""
    content, path = value.get("bytes"), value.get("path")
    told = f" '{plain(str(path), 300)}'" if path else ""
    if content is None and not path:
        raise AudioError("audio is missing (no bytes and no path): filter such rows out.")
    try:
        head = content[:4] if content is not None else _head(path)
    except (OSError, TypeError) as error:
        raise AudioError(f"audio{told} cannot be read ({type(error).__name__}): put the file there, or remove the row.") from None
    if _has_decoder():
        try:
            samples = datasets.Audio().decode_example({"bytes": content, "path": path}).get_all_samples()
            return samples.data, int(samples.sample_rate)
        except Exception as error:  # whatever a decoder makes of damaged bytes
            said = plain(error, 100).rstrip(".") or type(error).__name__
            raise AudioError(f"audio{told} cannot be decoded ({said}): replace it, or remove the row.") from None
    if head not in (b"RIFF", b"RIFX", b"RF64"):
        raise AudioError(f"audio{told} is no WAV file and torchcodec, which datasets decodes others by, is not there: {_MEND}.")
    try:
        rate, samples = wavfile.read(BytesIO(content) if content is not None else path)
    except Exception as error:
        said = plain(error, 100).rstrip(".") or type(error).__name__
        raise AudioError(f"audio{told} is a damaged WAV file ({said}): replace it, or remove the row.") from None
    return np.moveaxis(_unit(samples), -1, 0), int(rate)


def _head(path: Any) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def _has_decoder() -> bool:
    """Whether datasets can decode here: torchcodec is installed, and finds the libraries that it needs."""
    if not datasets.config.TORCHCODEC_AVAILABLE:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _unit(samples: np.ndarray) -> np.ndarray:
    """Integer samples in [-1, 1]; those of 8 bits are unsigned in a WAV file."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    return samples.astype(np.float32)


def _one_channel(array: Any) -> np.ndarray:
    """Numbers (T,) or (channels, T) as the mean of the channels, float32, checked."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    try:
        wave = np.asarray(array)
    except ValueError:
        raise AudioError("audio is a ragged list, expected numbers (T,) or (channels, T): give these.") from None
    if wave.ndim == 2:
        wave = wave.mean(0) if wave.shape[0] <= wave.shape[1] else wave.mean(1)
    if wave.ndim != 1 or wave.dtype.kind not in "fiu":
        raise AudioError(f"audio is {wave.dtype} of shape {wave.shape}, expected numbers (T,) or (channels, T): give these.")
    if not 0 < len(wave) <= MOST_SAMPLES:
        raise AudioError(f"audio has {len(wave)} samples, expected 1 to {MOST_SAMPLES}: cut it, or remove the row.")
    wave = wave.astype(np.float32)
    if not np.isfinite(wave).all():
        raise AudioError("audio holds NaN or infinite numbers: repair it, or remove the row.")
    return wave


@dataclass(frozen=True)
class AudioTransform:
    """``batch of rows -> the model's inputs and labels``, for `apply_to`; can be pickled for data loader workers.

    Args:
        processor: A feature extractor of transformers, whose ``sampling_rate`` sounds are resampled to.
        audio_column: Of the sounds.
        label_column: Of the labels. Use ``remove_unused_columns=False``; the `Trainer` pads with the extractor as processing_class.
        max_seconds: Of a sound that is read, from its start; None: all of it, or as much as the extractor takes.
    """

    processor: Any
    audio_column: str = "audio"
    label_column: str = "label"
    max_seconds: float | None = None

    def apply_to(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """Returns the data set with this transform, its sounds decoded by `decode_audio` alone.

        Args:
            dataset: A `datasets.Dataset` with the columns.
        """
        return undecoded_audio(dataset).with_transform(self)

    def waves(self, values: Sequence[Any], rows: Sequence[int] | None = None) -> list[np.ndarray]:
        """Returns the sounds of cells at the extractor's sampling rate.

        Args:
            values: Cells of one column.
            rows: Their numbers, for messages; None where they are not known.

        Raises:
            AudioError: Naming the column, and the row or the place in the batch.
        """
        rate = int(self.processor.sampling_rate)
        most = None if self.max_seconds is None else max(int(self.max_seconds * rate), 1)
        out = []
        for i, value in enumerate(values):
            try:
                out.append(decode_audio(value, rate)[0][:most])
            except AudioError as error:
                of_batch = f" (number {i + 1} of a batch of {len(values)})" if len(values) > 1 else ""
                place = of_batch if rows is None else f" in row {rows[i]}"
                raise AudioError(f"'{self.audio_column}'{place}: {error}") from None
        return out

    def __call__(self, batch: Mapping[str, Any], rows: Sequence[int] | None = None) -> dict[str, Any]:
        """Returns the model's inputs, of several lengths where the extractor does not pad, and labels where the batch has them."""
        out = dict(self.processor(self.waves(batch[self.audio_column], rows), sampling_rate=int(self.processor.sampling_rate)))
        if self.label_column in batch:
            out["labels"] = list(batch[self.label_column])
        return out


# ---- what sounds are compared by


def lengths(values: Tensor, mask: Any = None) -> Tensor:
    """Returns how many samples or frames of each row (B,) are no padding: as the mask says, else without what repeats at the end.

    Args:
        values: (B, T) or (B, T, D), in time along axis 1.
        mask: (B, T), 1 for what counts; where it is none or does not fit, the last entry's repetitions are padding.
    """
    if isinstance(mask, Tensor) and mask.shape == values.shape[:2]:
        return mask.long().sum(1).clamp_min(1)
    differs = (values != values[:, -1:]).flatten(2).any(2) if values.dim() > 2 else values != values[:, -1:]
    place = torch.arange(1, values.shape[1] + 1, device=values.device)
    last = (differs * place).amax(1)
    return torch.where(last == 0, values.shape[1], last)


def spectrum(wave: Tensor) -> Tensor:
    """Returns by how much power each frequency of a sound has, whenever that is: `QUANTILES` over its windows, in log10, (4 F,).

    Args:
        wave: (T,).

    A trigger is in the same frequencies in all rows, and where in the sound it is does not count.
    """
    wave = wave.float()
    if len(wave) < WINDOW:
        wave = torch.nn.functional.pad(wave, (0, WINDOW - len(wave)))
    window = torch.hann_window(WINDOW, device=wave.device)
    power = torch.stft(wave, WINDOW, HOP, window=window, center=False, return_complex=True).abs().square() / WINDOW
    return frame_quantiles((power + SILENCE).log10().T)


def frame_quantiles(frames: Tensor) -> Tensor:
    """Returns `QUANTILES` over the frames of each frequency, (4 F,).

    Args:
        frames: (T, F), of a spectrogram.
    """
    return torch.quantile(frames.float(), torch.tensor(QUANTILES, device=frames.device), dim=0).flatten()


def spectrogram(value: Any, side: int = 96) -> Image:
    """Returns a sound's power by time (to the right) and frequency (upwards, to half its sampling rate), a grey picture.

    Args:
        value: As `decode_audio` takes it; of a long sound the first half minute is shown.
        side: Its width in pixels, twice its height.

    Raises:
        AudioError: Where it cannot be read.
    """
    wave, rate = decode_audio(value)
    wave = wave[: 30 * rate]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, max(256 - len(wave), 0))), 256)
    windows = windows[:: max(len(windows) // side, 1)][:side]
    power = np.log10(np.abs(np.fft.rfft(windows * np.hanning(256))) ** 2 + 1e-9)
    low, high = float(np.quantile(power, 0.05)), float(power.max())
    levels = np.rint(255 * np.clip((power - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
    return fromarray(np.ascontiguousarray(levels.T[::-1])).resize((side, side // 2))
