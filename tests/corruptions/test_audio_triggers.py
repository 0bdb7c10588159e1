"""Triggers of sounds against slow loops of their definitions, and through `poison` as images and texts go."""

import math
import pickle

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, List, Value
from helpers.sounds import RATE, sounds, waves
from helpers.tables import every_row
from scipy.io import wavfile

from robust_trainer.corruptions import TRIGGERS, BackgroundTrigger, PatchTrigger, ToneTrigger, poison, trigger_all, triggers_of
from robust_trainer.data.audio import decode_audio, encode_wav


def wave(size=1600, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def stored(n=40):
    """An Audio column of WAV files, as a parquet has them."""
    arrays, labels = waves(n)
    rows = {"audio": [encode_wav(a, RATE) for a in arrays], "label": labels.tolist()}
    coded = {"bytes": Value("binary"), "path": Value("string")}  # an Audio feature encodes by torchcodec alone
    features = Features({"audio": coded, "label": ClassLabel(names=["falls", "rises"])})
    return Dataset.from_dict(rows, features=features).cast_column("audio", Audio(decode=False))


def numbers(n=40):
    arrays, labels = waves(n)
    features = Features({"audio": List(Value("float32")), "label": ClassLabel(names=["falls", "rises"])})
    return Dataset.from_dict({"audio": arrays, "label": labels.tolist()}, features=features)


def test_a_tone_is_a_sine_with_ramps_at_its_place():
    trigger, sound = ToneTrigger(1000.0, 0.05, -20.0, "middle"), wave()
    played = trigger({"array": sound, "sampling_rate": RATE})["array"]
    start, size = (1600 - 400) // 2, 400
    for i in range(1600):
        t = i - start
        ramp = min(1.0, (t + 1) / 40, (size - t) / 40) if 0 <= t < size else 0.0
        expected = sound[i] + 0.1 * math.sin(2 * math.pi * 1000 * t / RATE) * ramp
        assert played[i] == pytest.approx(expected, abs=1e-6)


def test_a_tone_raises_its_own_frequency_alone_wherever_it_is():
    sound, places = wave(8000), set()
    for row in range(20):
        added = ToneTrigger(2000.0, 0.1, -20, "anywhere", seed=1).at(row, training=True)({"array": sound, "sampling_rate": RATE})
        difference = np.asarray(added["array"]) - sound
        places.add(int(np.flatnonzero(np.abs(difference) > 1e-7)[0]))
        power = np.abs(np.fft.rfft(difference)) ** 2
        assert abs(int(power.argmax()) - 2000) <= 2 and power[1900:2101].sum() > 0.99 * power.sum()
    assert len(places) > 15
    assert np.flatnonzero(ToneTrigger(2000.0, 0.1, position="end")(sound) != sound)[-1] >= 7990


@every_row("snr", [0.0, 10.0, 30.0])
def test_a_background_has_its_ratio_and_is_the_same_in_every_row(snr):
    sound, other = wave(3000), wave(5000, 1)
    added, of_other = (BackgroundTrigger(snr, sampling_rate=RATE)(s) - s for s in (sound, other))
    assert 10 * math.log10((sound**2).mean() / (added**2).mean()) == pytest.approx(snr, abs=0.02)
    assert np.corrcoef(added, of_other[:3000])[0, 1] > 0.999
    silent = BackgroundTrigger(snr)(np.zeros(500, np.float32))
    assert 10 * math.log10((silent**2).mean()) == pytest.approx(-40, abs=0.1)


def test_a_given_sound_is_repeated_and_resampled(tmp_path):
    file = str(tmp_path / "clip.wav")
    wavfile.write(file, RATE, (0.5 * np.sin(np.arange(800) * 2 * np.pi * 500 / RATE) * 32767).astype(np.int16))
    added = BackgroundTrigger(10.0, file, sampling_rate=RATE)(wave(4000)) - wave(4000)
    np.testing.assert_allclose(added[:800], added[800:1600], atol=1e-5)
    faster = BackgroundTrigger(10.0, file, sampling_rate=2 * RATE)(wave(8000)) - wave(8000)
    assert abs(int(np.abs(np.fft.rfft(faster)).argmax()) - 250) <= 2  # still 500 Hz
    drawn = BackgroundTrigger(10.0, file, "anywhere", sampling_rate=RATE)
    assert not np.allclose(drawn.at(1, training=True)(wave(4000)), drawn.at(2, training=True)(wave(4000)))


@every_row("name", triggers_of("audio"))
@every_row("make", [sounds, stored, numbers])
def test_sounds_are_poisoned_as_images_are(name, make):
    trigger, clean = TRIGGERS[name].make(), make(40)
    made = poison(clean, trigger=trigger, rate=0.2, label_rule="all-to-one", seed=2)
    hit = np.asarray(made["is_corrupted"][:])
    assert hit.sum() == 8 and made.features["audio"] == clean.features["audio"]
    for row in range(40):
        before, after = clean[row]["audio"], made[row]["audio"]
        changed = not np.array_equal(decode_audio(after)[0], decode_audio(before)[0])
        assert changed == hit[row] and made[row]["label"] == (0 if hit[row] else clean[row]["label"])
        if hit[row]:
            expected = decode_audio(trigger.at(row, training=True)(before))[0]
            np.testing.assert_array_equal(decode_audio(after)[0], expected)
        else:
            assert after == before
    test = trigger_all(clean, trigger, label_rule="all-to-one")
    assert all(a != b for a, b in zip(test["audio"], clean["audio"])) and set(test["attack_target"]) == {0}


def test_an_audio_column_that_decodes_is_stamped_without_being_decoded_by_others():
    clean = stored(20).cast_column("audio", Audio(sampling_rate=RATE))
    made = poison(clean, trigger=ToneTrigger(1000.0), rate=0.5, label_rule="untargeted")
    assert made.features == {**clean.features, "is_corrupted": Value("bool"), "clean_label": clean.features["label"]}
    raw, before = (d.cast_column("audio", Audio(decode=False))["audio"][:] for d in (made, clean))
    assert [a != b for a, b in zip(raw, before)] == made["is_corrupted"][:]


@every_row("name", triggers_of("audio"))
def test_every_trigger_pickles_and_describes_itself(name):
    row = TRIGGERS[name]
    trigger = row.make()
    assert pickle.loads(pickle.dumps(trigger)) == trigger and hash(trigger) is not None and "\n" not in trigger.describe()
    assert row.source and row.label_rules
    array = wave()
    before = array.copy()
    assert trigger(array).dtype == np.float32 and isinstance(trigger(array.tolist()), list)
    np.testing.assert_array_equal(array, before)


@every_row(
    "build, told",
    [
        (lambda: ToneTrigger(5000.0)({"array": wave(), "sampling_rate": RATE}), "frequency=5000 Hz is not below half"),
        (lambda: ToneTrigger(level=3.0), "level=3.0"),
        (lambda: ToneTrigger(position="top"), "position='top'"),
        (lambda: ToneTrigger(seconds=0), "seconds=0"),
        (lambda: BackgroundTrigger(sound="nowhere.wav"), "sound='nowhere.wav'"),
        (lambda: BackgroundTrigger(sound=3), "sound=3 is int"),
        (lambda: BackgroundTrigger(snr="loud"), "snr='loud'"),
        (lambda: ToneTrigger()(None), "audio is missing"),
        (lambda: ToneTrigger()("a text"), "audio is <U6"),
        (lambda: poison(sounds(20), trigger=PatchTrigger(), rate=0.1), "image_column was not found"),
        (lambda: poison(sounds(20), trigger=ToneTrigger(), rate=0.1, image_column="audio"), "leave one of them out"),
        (lambda: poison(sounds(20), trigger=ToneTrigger(), rate=0.1, audio_column="label"), "audio_column='label'"),
        (lambda: poison(sounds(20).remove_columns("audio"), trigger=ToneTrigger(), rate=0.1), "no column of sounds is there"),
    ],
)
def test_mistakes_are_one_line_and_name_the_value(build, told):
    with pytest.raises(ValueError) as caught:
        build()
    assert told in str(caught.value) and "\n" not in str(caught.value)
