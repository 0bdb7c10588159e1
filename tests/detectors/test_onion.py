"""ONION against slow loops of its definition, with an n-gram model and with a tiny causal model; planted words are taken out."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers.tables import every_row
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from robust_trainer.corruptions import WordTrigger, poison
from robust_trainer.detectors import CausalModel, NGramModel, onion, word_suspicions

SUBJECTS, VERBS, ENDS = ("the film", "a story", "this play"), ("was", "seemed", "is"), ("very good", "rather dull", "quite long")


def sentences(n=150, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(str(rng.choice(part)) for part in (SUBJECTS, VERBS, ENDS)) for _ in range(n)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(n)]}, features=features)


def lm():
    words = ["[PAD]", "[UNK]", "<s>", *" ".join([*SUBJECTS, *VERBS, *ENDS]).split(), "cf"]
    words = list(dict.fromkeys(words))
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=found, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=len(words), bos_token_id=2))
    return model.eval(), tokenizer


def test_a_trigram_model_is_the_mixture_of_three_frequencies():
    texts = ["a b a", "a b c", "b c"]

    def slow(text, fitted):
        grams = [Counter(), Counter(), Counter()]
        for other in fitted:
            words = ["<", "<", *other.split(), "<"]
            for i in range(2, len(words)):
                for order in range(3):
                    grams[order][tuple(words[i - order : i + 1])] += 1
        contexts = [Counter(), Counter(), Counter()]
        for order in range(3):
            for gram, count in grams[order].items():
                contexts[order][gram[:-1]] += count
        words, total = ["<", "<", *text.split(), "<"], 0.0
        for i in range(2, len(words)):
            p = (grams[0][(words[i],)] + 0.5) / (contexts[0][()] + 0.5 * 5)  # a, b, c, the end, and all that is unseen
            for order, weight in ((1, 0.6), (2, 0.5)):
                gram = tuple(words[i - order : i + 1])
                if contexts[order][gram[:-1]]:
                    p = weight * grams[order][gram] / contexts[order][gram[:-1]] + (1 - weight) * p
            total -= math.log(p)
        return math.exp(total / (len(words) - 2))

    model = NGramModel(texts)
    for text in ("a b", "c a b", "x"):
        assert model([text])[0] == pytest.approx(slow(text, texts))
    assert model(["b c"], 2)[0] == pytest.approx(slow("b c", texts[:2]))  # without the counts of the text itself


@every_row("kind", ["n-gram", "causal"])
def test_a_words_suspicion_is_what_the_perplexity_falls_without_it(kind):
    texts = sentences()["text"][:]
    model = NGramModel(texts) if kind == "n-gram" else CausalModel(*lm(), batch_size=3)
    words = "the film was cf very good".split()
    found = word_suspicions(" ".join(words), model)
    whole = model([" ".join(words)])[0]
    for i in range(len(words)):
        assert found[i] == pytest.approx(whole - model([" ".join(words[:i] + words[i + 1 :])])[0], rel=1e-3, abs=1e-4)
    assert word_suspicions("word", model).tolist() == [0.0]


def test_the_causal_model_is_the_mean_loss_of_the_tokens():
    model, tokenizer = lm()
    texts = ["the film was dull", "cf", "a story seemed rather long"]
    found = CausalModel(model, tokenizer, batch_size=2)(texts)
    for text, perplexity in zip(texts, found):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        assert perplexity == pytest.approx(math.exp(float(model(ids, labels=ids).loss)), rel=1e-4)


def test_planted_words_are_taken_out_and_no_others():
    clean = sentences()
    made = poison(clean, trigger=WordTrigger("cf"), rate=0.1, label_rule="all-to-one")
    filtered = onion(made, fit_on=sentences(seed=1)["text"][:], threshold=0.5)
    hit = np.asarray(made["is_corrupted"][:])
    assert [text == "cf" for text in filtered["removed_words"]] == hit.tolist()
    assert filtered["text"][:] == clean["text"][:] and filtered["label"][:] == made["label"][:]
    assert onion(clean, threshold=1e9)["text"][:] == clean["text"][:]
    everything = onion(clean.select(range(20)), threshold=-1e9)
    assert all(len(text.split()) == 1 for text in everything["text"])  # one word stays


@every_row(
    "settings, told",
    [
        ({"model": object()}, "model is given alone"),
        ({"tokenizer": object()}, "tokenizer is given alone"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"text_column": "label"}, "text_column='label'"),
        ({"model": object(), "tokenizer": object(), "fit_on": ["a"]}, "leave one of them out"),
    ],
)
def test_mistakes_are_one_line(settings, told):
    with pytest.raises(ValueError) as caught:
        onion(sentences(10), **settings)
    assert told in str(caught.value) and "\n" not in str(caught.value)
