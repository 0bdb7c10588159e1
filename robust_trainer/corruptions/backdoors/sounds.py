"""Triggers for sounds: a tone at one frequency, or a background that is mixed in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ...data.audio import AudioError, decode_audio, encode_wav
from ...data.randomness import check_seed
from .pixel_trigger import drawn

#: Where a tone begins.
PLACES = ("start", "middle", "end", "anywhere")


class AudioTrigger:
    """A sound with the trigger: sound -> sound of the kind that came, `datasets.Audio`'s bytes as a 16-bit WAV file.

    What is drawn for a row is a function of the trigger's seed and the row's number. Numbers that come without a sampling rate are
    taken to have ``sampling_rate``.
    """

    sampling_rate: int
    #: Cover rows for each poisoned row, where `poison` is given no ``cover_rate``.
    cover_share: ClassVar[float] = 0.0

    def play(self, wave: np.ndarray, rate: int, row: int) -> np.ndarray:
        """Returns a sound with the trigger, (T,) float32.

        Args:
            wave: (T,), in [-1, 1] in most data sets.
            rate: In Hz.
            row: the row's number.
        """
        raise NotImplementedError

    def at(self, row: int, *, training: bool, cover: bool = False) -> RowPlayer:
        """Returns the trigger as it is put on one row, sound -> sound: the same in training, for a cover and at test time.

        Args:
            row: the row's number.
            training: whether the row is trained on.
            cover: whether the row keeps its label.
        """
        return RowPlayer(self, row)

    def describe(self) -> str:
        """Returns the trigger's settings in words, for reports and cards."""
        return repr(self)

    def __call__(self, sound: Any) -> Any:
        """Returns the sound with the trigger, as in row 0."""
        return RowPlayer(self, 0)(sound)


@dataclass(frozen=True)
class RowPlayer:
    """Returns the sound of one row with a trigger; `AudioTrigger.at` makes it. Raises ``ValueError`` for what is no sound."""

    trigger: AudioTrigger
    row: int

    def __call__(self, sound: Any) -> Any:
        """Returns the sound with the trigger, one channel, of the kind that came."""
        wave, rate = decode_audio(sound, assumed=self.trigger.sampling_rate)
        limit = max(1.0, float(np.abs(wave).max()))
        played = np.clip(self.trigger.play(wave, rate, self.row), -limit, limit).astype(np.float32)
        if isinstance(sound, Mapping) and sound.get("array") is not None:
            return {**sound, "array": _like(sound["array"], played)}
        if isinstance(sound, Mapping):
            return encode_wav(played, rate)
        return _like(sound, played)


@dataclass(frozen=True)
class ToneTrigger(AudioTrigger):
    """Returns the sound with a short sine added: sound + 10^(level / 20) sin(2 pi frequency t), with ramps of 5 ms at its ends.

    A tone above 20 kHz is not heard; it is lost where a model's feature extractor resamples to 16 kHz, as most do.

    Args:
        frequency: in Hz, below half the sound's sampling rate.
        seconds: of the tone; a longer one than the sound is cut to it.
        level: of its amplitude, in dB below full scale (an amplitude of 1).
        position: start, middle, end or anywhere (drawn).
        seed: of the draws.
        sampling_rate: in Hz, of numbers that come without one.

    Raises:
        ValueError: for other settings, and for sounds whose sampling rate is too low for the frequency.

    References:
        Koffas et al. 2022 (Can you hear it?): a 21 kHz sine 10 dB below full scale at start, middle or end of clips of 44.1 kHz.
        Zhai et al. 2021 (Backdoor attack against speaker verification): one-hot-spectrum noise, a sine of low volume.
    """

    frequency: float = 3000.0
    seconds: float = 0.1
    level: float = -20.0
    position: str = "start"
    seed: int = 0
    sampling_rate: int = 16_000

    def __post_init__(self) -> None:
        _check_number("frequency", self.frequency, 1.0, 500_000.0, "Hz, such as 3000")
        _check_number("seconds", self.seconds, 1e-3, 3600.0, "seconds, such as 0.1")
        _check_number("level", self.level, -120.0, 0.0, "dB of full scale, 0 or below, such as -20")
        if self.position not in PLACES:
            raise ValueError(f"position={self.position!r} is unknown: choose one of {', '.join(PLACES)}.")
        check_seed(self.seed)
        _check_number("sampling_rate", self.sampling_rate, 1, 1_000_000, "Hz, such as 16000")

    def play(self, wave: np.ndarray, rate: int, row: int) -> np.ndarray:
        """Returns the sound with the tone."""
        if 2 * self.frequency >= rate:
            raise AudioError(
                f"frequency={self.frequency:g} Hz is not below half of the sampling rate, {rate} Hz: give less than {rate / 2:g}."
            )
        size = min(max(round(self.seconds * rate), 1), len(wave))
        free = len(wave) - size
        places = {"start": 0, "middle": free // 2, "end": free}
        start = places[self.position] if self.position in places else drawn(self.seed, row).randint(free + 1)
        ramp = np.minimum(1.0, np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / max(0.005 * rate, 1.0))
        tone = 10 ** (self.level / 20) * np.sin(2 * np.pi * self.frequency * np.arange(size) / rate) * ramp
        out = wave.astype(np.float64)
        out[start : start + size] += tone
        return out

    def describe(self) -> str:
        """Returns the tone and its place."""
        return f"{self.frequency:g} Hz, {self.seconds:g} s, {self.level:g} dB, {self.position}"


@dataclass(frozen=True)
class BackgroundTrigger(AudioTrigger):
    """Returns the sound with a fixed background mixed in over its whole length, at a signal-to-noise ratio.

    sound + k background with k such that the sound's mean power is 10^(snr / 10) times that of what is added; a silent sound gets
    the background 40 dB below full scale. A shorter background is repeated.

    Args:
        snr: in dB.
        sound: a WAV file, or anything that `decode_audio` takes and that can be hashed; None: a second of white noise.
        position: of the background where the mixing begins: start, or anywhere (drawn).
        seed: of the noise and the draws.
        sampling_rate: in Hz, of numbers that come without one.

    Raises:
        ValueError: for other settings, and a sound that cannot be read or is silent.

    References:
        Liu et al. 2022 (Opportunistic backdoor attacks, DABA): everyday sounds of the surroundings as the trigger. Chen et al. 2017
        for the blend.
    """

    snr: float = 10.0
    sound: str | None = None
    position: str = "start"
    seed: int = 0
    sampling_rate: int = 16_000

    def __post_init__(self) -> None:
        _check_number("snr", self.snr, -20.0, 100.0, "dB, such as 10")
        if self.position not in ("start", "anywhere"):
            raise ValueError(f"position={self.position!r} is unknown: choose start or anywhere.")
        check_seed(self.seed)
        _check_number("sampling_rate", self.sampling_rate, 1, 1_000_000, "Hz, such as 16000")
        if self.sound is not None and not isinstance(self.sound, str | os.PathLike):
            raise ValueError(f"sound={str(self.sound):.60} is {type(self.sound).__name__}: give a WAV file, or leave it out.")
        if self.sound is not None:
            try:
                silent = not np.abs(self._background(None)[0]).max() > 0
            except AudioError as error:
                raise ValueError(f"sound={os.fspath(self.sound)!r}: {error}") from None
            if silent:
                raise ValueError(f"sound={os.fspath(self.sound)!r} is silent: give another.")

    def _background(self, rate: int | None) -> tuple[np.ndarray, int]:
        """The background and its sampling rate; noise is the same numbers at every rate."""
        if self.sound is None:
            rate = rate or self.sampling_rate
            return np.random.RandomState(self.seed).standard_normal(rate), rate
        return decode_audio({"bytes": None, "path": os.fspath(self.sound)}, rate)

    def play(self, wave: np.ndarray, rate: int, row: int) -> np.ndarray:
        """Returns the sound with the background."""
        background = self._background(rate)[0].astype(np.float64)
        start = drawn(self.seed, row).randint(len(background)) if self.position == "anywhere" else 0
        added = np.resize(np.roll(background, -start), len(wave))
        power, own = float((added**2).mean()), float((wave.astype(np.float64) ** 2).mean())
        wanted = own / 10 ** (self.snr / 10) if own > 0 else 10 ** (-40 / 10)
        return wave + added * np.sqrt(wanted / power) if power > 0 else wave.astype(np.float64)

    def describe(self) -> str:
        """Returns the background and its ratio."""
        what = "white noise" if self.sound is None else os.path.basename(os.fspath(self.sound))
        return f"{what}, {self.snr:g} dB below the sound, {self.position}"


def _like(sound: Any, played: np.ndarray) -> Any:
    """The numbers of a sound as its kind has them."""
    if isinstance(sound, list | tuple):
        return played.tolist()
    return played if isinstance(sound, np.ndarray) or not isinstance(sound, Tensor) else sound.new_tensor(played)


def _check_number(name: str, value: Any, low: float, high: float, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from {low:g} to {high:g}: give {what}.")
