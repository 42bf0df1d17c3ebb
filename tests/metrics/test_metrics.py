"""Metrics against figures that were counted by hand."""

import importlib
import math
import re
import string
import urllib.error

import hypothesis
import hypothesis.strategies as st
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from dvp_jax.data import Example, make_task
from dvp_jax.metrics.rouge import rouge_scores
from dvp_jax.metrics.squad import exact_match, normalize_answer, squad_scores, token_f1
from dvp_jax.metrics.translation import translation_scores

# SQuAD


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat\tsat\non A mat.", "cat sat on mat"),
        ("an apple, a pear", "apple pear"),
        ("theatre and banana", "theatre and banana"),  # articles inside words stay
        (
            "U.S. well-known the-end",
            "us wellknown theend",
        ),  # punctuation goes before articles do, and leaves no gap
        ("$1,000.50", "100050"),
        ("A.", ""),
        ("»Ünïted« Kingdom", "»ünïted« kingdom"),  # only ASCII punctuation goes
    ],
)
def test_answers_are_normalized_as_by_the_official_script(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("The cat sat", "a cat sat down.", 2 * 1 * (2 / 3) / (1 + 2 / 3)),  # {cat, sat} of 2 and of 3 words
        ("Denver Broncos", "denver broncos", 1.0),
        ("broncos Denver", "Denver Broncos", 1.0),  # order does not count
        ("Denver", "Carolina Panthers", 0.0),
        ("the", "a", 0.0),  # no word is left in either
        ("", "Denver", 0.0),
        ("Denver", "", 0.0),
        # Words count as often as they occur in both.
        ("york york york", "york", 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("new new york", "new york new york", 2 * 1 * (3 / 4) / (1 + 3 / 4)),
    ],
)
def test_f1_is_that_of_the_words(prediction, reference, f1):
    assert token_f1(prediction, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("The Denver Broncos!", "denver  broncos", 1.0),
        ("Denver Broncos", "Broncos Denver", 0.0),
        ("Denver", "Denver Broncos", 0.0),
        ("", "Denver", 0.0),
    ],
)
def test_exact_match_is_that_of_the_normalized_text(prediction, reference, same):
    assert exact_match(prediction, reference) == same


def test_each_measure_takes_its_own_best_reference():
    # F1: 2 * 2 / (2 + 3) with the first, 1 with the second; neither is the same text.
    assert squad_scores(["red green"], [["red green blue", "green red"]]) == {"f1": 100.0, "exact_match": 0.0}
    assert squad_scores(["red green"], [["red green blue"]]) == pytest.approx({"f1": 80.0, "exact_match": 0.0})
    assert squad_scores(["red"], [["blue", "red", "green"]]) == {"f1": 100.0, "exact_match": 100.0}


def test_squad_scores_are_means_over_questions_in_percent():
    predictions = ["308", "cat sat", "", "Denver"]
    references = [["308", "three"], ["cat sat down"], ["x"], ["Denver Broncos Denver"]]
    # F1: 1, 4/5, 0, 2 * 1 / (1 + 3)
    scores = squad_scores(predictions, references)
    assert scores == pytest.approx({"f1": 100 * (1 + 0.8 + 0 + 0.5) / 4, "exact_match": 25.0})
    assert list(scores) == ["f1", "exact_match"]


@pytest.mark.parametrize("score", [squad_scores, rouge_scores])
def test_as_many_predictions_as_references_are_needed(score):
    with pytest.raises(ValueError):
        score(["one", "two"], ["one"])


# ROUGE


def rouge(prediction, reference):
    return rouge_scores([prediction], [reference])


def test_rouge_counts_words_pairs_and_the_longest_common_subsequence():
    scores = rouge("the cat sat on the mat", "the cat was on the mat")
    # Words in both: the, cat, on, the, mat, of 6 and 6. Pairs: "the cat", "on the", "the mat" of 5 and 5.
    assert scores == pytest.approx(
        {"rougeL": 100 * 5 / 6, "rouge1": 100 * 5 / 6, "rouge2": 100 * 3 / 5, "rougeLsum": 100 * 5 / 6}
    )
    assert list(scores) == ["rougeL", "rouge1", "rouge2", "rougeLsum"]


def test_rouge_is_the_harmonic_mean_of_precision_and_recall():
    scores = rouge("police kill the gunman", "police killed the gunman yesterday evening")
    # Words 4 of 4 and of 6; pairs 3 of 3 and of 5; subsequence 4.
    assert scores == pytest.approx({"rougeL": 80.0, "rouge1": 80.0, "rouge2": 75.0, "rougeLsum": 80.0})


def test_rouge_l_minds_the_order_and_rouge_1_does_not():
    scores = rouge("gunman the kill police", "police kill the gunman yesterday evening")
    # The subsequence is any one word: 1 of 4 and of 6.
    assert scores["rouge1"] == pytest.approx(80.0)
    assert scores["rouge2"] == 0.0
    assert scores["rougeL"] == scores["rougeLsum"] == pytest.approx(100 * 2 * (1 / 4) * (1 / 6) / (1 / 4 + 1 / 6))


def test_rouge_compares_stems():
    assert rouge("running", "runs")["rouge1"] == 100.0
    assert rouge("he is running", "he is gone")["rouge1"] == pytest.approx(100 * 2 / 3)


def test_rouge_ignores_case_and_punctuation():
    scores = rouge("Hello, WORLD!", "hello world")
    assert scores == {"rougeL": 100.0, "rouge1": 100.0, "rouge2": 100.0, "rougeLsum": 100.0}


def test_rouge_counts_repeated_words_as_often_as_both_have_them():
    assert rouge("cat cat cat cat", "cat cat dog dog")["rouge1"] == pytest.approx(50.0)


@pytest.mark.parametrize("end", [". ", "! ", "? ", ".\n", ".  "])
def test_rouge_lsum_matches_sentence_by_sentence(end):
    scores = rouge(f"The bird sang{end}The dog barked.", f"The dog barked{end}The bird sang.")
    # Whole texts: "the dog barked" is common, or "the bird sang", 3 words of 6. By sentences all 6 are.
    assert scores["rougeL"] == pytest.approx(50.0)
    assert scores["rougeLsum"] == pytest.approx(100.0)
    # Pairs: the dog, dog barked, the bird, bird sang, of 5 on each side.
    assert scores["rouge2"] == pytest.approx(80.0)


def test_rouge_lsum_of_one_sentence_is_the_union_over_the_predicted_ones():
    # The example of Lin 2004, section 3.2: w1 w2 and w1 w3 w5 are common, together 4 of 5 words; 4 of 10 back.
    scores = rouge("w1 w3 w8 w9 w5. w1 w2 w6 w7 w8.", "w1 w2 w3 w4 w5.")
    assert scores["rougeLsum"] == pytest.approx(100 * 2 * (4 / 5) * (4 / 10) / (4 / 5 + 4 / 10))
    # Whole texts: w1 w3 w5.
    assert scores["rougeL"] == pytest.approx(100 * 2 * (3 / 5) * (3 / 10) / (3 / 5 + 3 / 10))


def test_rouge_lsum_does_not_split_inside_a_word():
    # With "3." apart from "5" the order of the two would not count.
    assert rouge("5.3", "3.5")["rougeLsum"] == pytest.approx(50.0)


def test_rouge_scores_are_means_over_texts():
    scores = rouge_scores(["same words", "other", ""], ["same words", "thing", "empty"])
    assert scores == pytest.approx(dict.fromkeys(["rougeL", "rouge1", "rouge2", "rougeLsum"], 100 / 3))


SCRIPTS = {
    "Cyrillic": ("Собака бежит по снегу", "Собака лежит на снегу", 2 / 4),
    "umlauts": ("das Öl ist", "Das Äl ist", 2 / 3),
    "composed or not": ("cafe\u0301 noir", "caf\u00e9 noir", 1.0),
    "Devanagari": ("हिन्दी में लिखा है", "हिन्दी में कहा है।", 3 / 4),
    "Arabic": ("كتاب جديد", "كتاب قديم", 1 / 2),
    "Hangul": ("오늘 날씨가 좋다", "어제 날씨가 좋다", 2 / 3),
    "Chinese": ("今天天气很好。", "今天天气真好!", 5 / 6),  # a word is a character
    "Japanese": ("犬が走る", "犬が歩く", 2 / 4),
    "Thai": ("น้ำดี", "น้ำมี", 2 / 3),  # n with its tone, am, and one of two letters with a vowel above
    "digits": ("٣ كتب", "3 كتب", 1 / 2),
}


@pytest.mark.parametrize(("prediction", "reference", "score"), SCRIPTS.values(), ids=SCRIPTS)
def test_rouge_counts_words_of_any_script(prediction, reference, score):
    scores = rouge(prediction, reference)
    assert scores["rouge1"] == scores["rougeL"] == scores["rougeLsum"] == pytest.approx(100 * score)
    assert rouge(reference, reference)["rougeLsum"] == pytest.approx(100.0)


@pytest.mark.parametrize("end", ["。", "！", "？ ", "। ", "؟ "])
def test_rouge_lsum_knows_the_ends_of_sentences_of_other_scripts(end):
    scores = rouge(f"आ ई{end}ऊ ए", f"ऊ ए{end}आ ई")
    assert scores["rougeL"] == pytest.approx(50.0) and scores["rougeLsum"] == pytest.approx(100.0)


ENGLISH = st.text(st.sampled_from(string.printable + "’“”—…£€²😃❤\ufe0f\u200d\u00a0")) | st.lists(
    st.sampled_from(["running", "runs", "The", "cat's", "x_y", "U.S.", "3.5", "a-b", "skies\n", "agreed!"])
).map(" ".join)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(ENGLISH, ENGLISH)
def test_rouge_of_english_is_rouge_scores_own(prediction, reference):
    names = ["rougeL", "rouge1", "rouge2", "rougeLsum"]
    texts = (re.sub(r"(?<=[.!?])\s+", "\n", text) for text in (reference, prediction))
    expected = RougeScorer(names, use_stemmer=True).score(*texts)
    assert rouge(prediction, reference) == {name: 100 * expected[name].fmeasure for name in names}


# BLEU and chrF

GERMAN = ["Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.", "Zwei Hunde spielen im tiefen Schnee."]


def test_an_identical_corpus_scores_100():
    scores = translation_scores(GERMAN, GERMAN)
    assert scores == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert list(scores) == ["bleu", "chrf"]


def test_a_corpus_without_common_words_or_letters_scores_0():
    assert translation_scores(["abc def abc def"], ["xyz uvw xyz uvw"]) == {"bleu": 0.0, "chrf": 0.0}


def test_bleu_is_that_of_the_counts_of_the_whole_corpus():
    predictions = ["a b c d e", "the the cat sat"]
    references = ["a b c d f g", "the cat sat here"]
    # By hand, first sentence + second; "the" counts once, as in its reference.
    words = (4 + 3) / (5 + 4)
    pairs = (3 + 2) / (4 + 3)
    triples = (2 + 1) / (3 + 2)
    fours = (1 + 0) / (2 + 1)
    brevity = math.exp(1 - (6 + 4) / (5 + 4))
    expected = 100 * brevity * (words * pairs * triples * fours) ** (1 / 4)
    assert translation_scores(predictions, references)["bleu"] == pytest.approx(expected)


def test_bleu_does_not_punish_length_but_by_its_precision():
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert translation_scores(["a b c d e"], ["a b c d"])["bleu"] == pytest.approx(expected)


def test_bleu_parts_punctuation_from_words_and_minds_case():
    assert translation_scores(["Ein Hund , ein Ball ."], ["Ein Hund, ein Ball."])["bleu"] == pytest.approx(100.0)
    # All six tokens but the first: 5/6 words, 4/5 pairs, 3/4 triples, 2/3 fours.
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    assert translation_scores(["ein Hund, ein Ball."], ["Ein Hund, ein Ball."])["bleu"] == pytest.approx(expected)


def test_chrf_weighs_recall_four_times_over_letters_and_their_pairs():
    # "ab" against "abc": letters 2 of 2 and of 3, pairs 1 of 1 and of 2; "ab" has no longer ones.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert translation_scores(["ab"], ["abc"])["chrf"] == pytest.approx(expected)


def test_chrf_ignores_spaces():
    assert translation_scores(["an orange hat"], ["anorange hat"])["chrf"] == pytest.approx(100.0)


CHINESE = ("今天天气很好，我们去公园散步。", "今天天气真好，我们去公园散步。")


@pytest.mark.parametrize("language", ["Chinese", "Simplified Chinese"])
def test_bleu_of_chinese_is_sacrebleus_with_its_tokenizer_of_chinese(language):
    task = make_task("translation", target_language=language)
    expected = sacrebleu.corpus_bleu([CHINESE[0]], [[CHINESE[1]]], tokenize="zh").score
    assert 75 < expected < 85
    assert task.score([CHINESE[0]], [Example("0", "p", (CHINESE[1],))])["bleu"] == expected


@pytest.mark.parametrize(("language", "extra"), [("Japanese", "ja"), ("Korean", "ko")])
def test_a_language_whose_tokenizer_is_missing_is_refused_first_with_the_package(language, extra, monkeypatch):
    module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{extra}_mecab")
    monkeypatch.setattr(module, "MeCab", None)  # as without the package
    with pytest.raises(ImportError, match=rf"pip install sacrebleu\[{extra}\]$") as error:
        make_task("translation", target_language=language)
    assert len(str(error.value).splitlines()) == 1


def test_another_tokenizer_of_bleu_is_taken_by_its_name_and_an_unknown_one_refused():
    task = make_task("translation", target_language="Thai", bleu_tokenizer="char")
    expected = sacrebleu.corpus_bleu(["น้ำดี"], [["น้ำมี"]], tokenize="char").score
    assert task.score(["น้ำดี"], [Example("0", "p", ("น้ำมี",))])["bleu"] == expected > 0
    with pytest.raises(ValueError, match="bleu_tokenizer is ''; allowed: none, zh, 13a"):
        make_task("translation", bleu_tokenizer="")


def test_a_tokenizer_of_bleu_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", tmp_path)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda _: (_ for _ in ()).throw(urllib.error.URLError("offline"))
    )
    with pytest.raises(ImportError, match=r"BLEU with tokenizer 'flores200': .*offline"):
        make_task("translation", bleu_tokenizer="flores200")


@pytest.mark.parametrize("text", [CHINESE[0], "犬が走る", "오늘 날씨가 좋다", "น้ำดีมาก", "བོད་སྐད་ནི"])
def test_references_whose_words_bleu_would_not_find_are_refused(text, tmp_path):
    (tmp_path / "source").write_text("a\n", encoding="utf-8")
    (tmp_path / "target").write_text(f"{text}\n", encoding="utf-8")
    paths = {"source_path": str(tmp_path / "source"), "target_path": str(tmp_path / "target")}
    with pytest.raises(ValueError, match=r"target_language is 'German'.* allowed: Chinese, .* bleu_tokenizer"):
        make_task("translation", **paths).load()
    assert len(make_task("translation", **paths, bleu_tokenizer="char").load()) == 1
