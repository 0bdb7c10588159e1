"""Sounds as inputs: cells of every kind are one sound, others are refused in one line; the spectrum tells no time."""

import datasets
import numpy as np
import pytest
import torch
from helpers.sounds import RATE, extractor, sounds, waves
from helpers.tables import every_row
from scipy.io import wavfile

from robust_trainer.data.audio import (
    HOP,
    QUANTILES,
    WINDOW,
    AudioTransform,
    audio_column,
    audio_columns,
    decode_audio,
    encode_wav,
    frame_quantiles,
    lengths,
    resampled,
    spectrum,
)


def wave(size=2000, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(size)).clip(-1, 1).astype(np.float32)


@every_row("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_wav_files_of_every_kind_are_the_sound(dtype, tmp_path):
    sound, file = wave(), str(tmp_path / "a.wav")
    levels = {np.uint8: 128 + 127 * sound, np.int16: 32767 * sound, np.int32: (2**31 - 1) * sound.astype(float), np.float32: sound}
    wavfile.write(file, RATE, levels[dtype].astype(dtype))
    step = {np.uint8: 2 / 127, np.int16: 2 / 32767}.get(dtype, 1e-6)
    with open(file, "rb") as opened:
        content = opened.read()
    for cell in ({"bytes": None, "path": file}, {"bytes": content, "path": None}):
        found, rate = decode_audio(cell)
        assert rate == RATE and found.dtype == np.float32
        np.testing.assert_allclose(found, sound, atol=step)


def test_channels_are_averaged_and_what_is_written_is_read(tmp_path):
    both = np.stack([wave(seed=1), wave(seed=2)])
    for cell in (both, both.T, {"array": both, "sampling_rate": RATE}, torch.from_numpy(both), both.tolist()):
        np.testing.assert_allclose(decode_audio(cell)[0], both.mean(0), atol=1e-6)
    wavfile.write(tmp_path / "b.wav", RATE, both.T)
    np.testing.assert_allclose(decode_audio({"bytes": None, "path": str(tmp_path / "b.wav")})[0], both.mean(0), atol=1e-6)
    once = decode_audio(encode_wav(wave(), RATE))[0]
    np.testing.assert_allclose(once, wave(), atol=1 / 32768)
    np.testing.assert_array_equal(decode_audio(encode_wav(once, RATE))[0], once)


def test_resampling_keeps_a_tone_and_its_seconds():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    for rate in (16_000, 6000, 11_025):
        moved, told = decode_audio({"array": tone, "sampling_rate": RATE}, rate)
        assert told == rate and len(moved) == rate and int(np.abs(np.fft.rfft(moved)).argmax()) == 440
    assert resampled(tone, RATE, RATE) is tone
    assert decode_audio(tone)[1] == 16_000 and decode_audio(tone, 8000)[1] == 8000 and decode_audio(tone, assumed=7000)[1] == 7000


@every_row(
    "cell, told",
    [
        (None, "audio is missing (None)"),
        ({"bytes": None, "path": None}, "no bytes and no path"),
        ({"bytes": b"fLaC0000", "path": "a.flac"}, "install torchcodec"),
        ({"bytes": b"RIFF00", "path": "a.wav"}, "'a.wav' is a damaged WAV file"),
        ({"bytes": None, "path": "nowhere.wav"}, "'nowhere.wav' cannot be read"),
        ({"array": [0.0], "sampling_rate": None}, "sampling_rate is None"),
        ([], "audio has 0 samples"),
        ([0.0, float("nan")], "NaN or infinite"),
        ([[0.0], [1.0, 2.0]], "ragged"),
        (["a"], "audio is <U1"),
        (np.zeros((2, 2, 2)), "of shape (2, 2, 2)"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line(cell, told, monkeypatch):
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", False)
    with pytest.raises(ValueError) as caught:
        decode_audio(cell)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_datasets_own_decoder_is_asked_where_it_is_there(monkeypatch):
    class Samples:
        data, sample_rate = torch.from_numpy(wave()), RATE

    class Decoder:
        def get_all_samples(self):
            return Samples()

    assert decode_audio(Decoder())[1] == RATE  # what an Audio column gives
    monkeypatch.setattr("robust_trainer.data.audio._has_decoder", lambda: True)
    asked = []
    monkeypatch.setattr(datasets.Audio, "decode_example", lambda self, value: asked.append(value) or Decoder())
    np.testing.assert_allclose(decode_audio({"bytes": b"fLaC", "path": None})[0], wave())
    assert asked == [{"bytes": b"fLaC", "path": None}]


def test_columns_are_found_by_feature_or_name():
    data = sounds(4)
    assert audio_column(data) == "audio" and audio_column(data.rename_column("audio", "a"), None) == "a"
    numbers = datasets.Dataset.from_dict({"speech": [[0.1, 0.2]], "scores": [[0.1, 0.2]], "label": [0]})
    assert audio_columns(numbers) == ["speech"] and audio_column(numbers, "scores") == "scores"
    stored = datasets.Dataset.from_dict({"audio": [encode_wav(wave(), RATE)], "image": [{"bytes": b"", "path": ""}]})
    assert audio_columns(stored) == ["audio"]
    for name, told in (("label", "expected Audio"), ("none", "choose one of")):
        with pytest.raises(ValueError, match=told):
            audio_column(data, name)


def test_the_transform_gives_what_the_extractor_makes_and_names_the_row():
    arrays, labels = waves(4)
    processor = extractor("wav2vec2")
    batch = AudioTransform(processor)(sounds(4)[:])
    assert batch["labels"] == labels.tolist()
    for given, array in zip(batch["input_values"], arrays):
        np.testing.assert_allclose(given, (array - array.mean()) / np.sqrt(array.var() + 1e-7), atol=1e-5)
    assert [len(w) for w in AudioTransform(processor, max_seconds=0.01).waves(arrays)] == [80] * 4
    with pytest.raises(ValueError, match="'audio' in row 7: audio is missing"):
        AudioTransform(processor)({"audio": [None]}, rows=[7])


def test_padding_is_told_by_the_mask_or_by_what_repeats():
    values = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    values[0, 6:], values[1, 9:] = 0.0, 0.0
    values[2, 9] = 1.0
    mask = torch.ones(3, 10)
    mask[0, 5:] = 0
    assert lengths(values).tolist() == [6, 9, 9] and lengths(values, mask).tolist() == [5, 10, 10]
    frames = torch.randn(2, 6, 4)
    frames[0, 3:] = -0.5
    assert lengths(frames).tolist()[0] == 3 and lengths(torch.zeros(1, 5)).tolist() == [5]


def test_the_spectrum_is_the_quantiles_of_a_slow_transform_and_tells_no_time():
    sound = torch.from_numpy(wave(WINDOW + 3 * HOP))
    window = np.hanning(WINDOW + 1)[:-1]
    frames = []
    for start in range(0, 3 * HOP + 1, HOP):
        power = np.abs(np.fft.rfft(sound[start : start + WINDOW].numpy() * window)) ** 2 / WINDOW
        frames.append(np.log10(power + 1e-6))
    expected = np.quantile(np.stack(frames), QUANTILES, axis=0).ravel()
    np.testing.assert_allclose(spectrum(sound), expected, atol=1e-3)
    np.testing.assert_allclose(frame_quantiles(torch.tensor(np.stack(frames))), expected, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    np.testing.assert_allclose(frame_quantiles(torch.tensor(np.stack(frames))[order]), expected, atol=1e-5)
    assert spectrum(sound[:100]).shape == spectrum(sound).shape
