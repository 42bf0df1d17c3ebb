"""The quality of single texts against figures that were counted by hand."""

import pytest

from dvp_jax.metrics.quality import MEASURES, text_quality


@pytest.mark.parametrize(
    ("measure", "prediction", "reference", "quality"),
    [
        ("f1", "The cat sat", "a cat sat down.", 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("exact_match", "The Denver Broncos!", "denver  broncos", 1.0),
        ("exact_match", "Denver", "Denver Broncos", 0.0),
        # The longest common subsequence is "cat sit mat": precision 3/3, recall 3/4, after stemming.
        ("rougeL", "cats sitting mats", "cat sit on mat", 2 * 1 * (3 / 4) / (1 + 3 / 4)),
        # Precisions 2/3 and 1/2; longer n-grams there are, or not, without a match: 1/2 of one each.
        ("bleu", "a b c", "a b d", (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)),
        # Single letters: 1 of 2 in both, no pairs; orders without n-grams in both do not count. F is 1/2 and 0.
        ("chrf", "ab", "ac", (1 / 2 + 0) / 2),
    ],
)
def test_quality_is_what_the_measure_says(measure, prediction, reference, quality):
    assert text_quality(measure, prediction, [reference]) == pytest.approx(quality)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("text", ["", "?!", "the", "ein kleines Kind spielt mit einem Ball .", "東京"])
def test_a_text_is_as_good_as_itself(measure, text):
    assert text_quality(measure, text, ["something else", text]) == 1.0


@pytest.mark.parametrize("measure", MEASURES)
def test_no_text_is_better_than_its_reference(measure):
    # Equal to every measure, or to those that leave out white space: sacrebleu has 100.00000000000004 for it.
    assert text_quality(measure, "a small house  stands there", ["a small house stands there"]) == 1.0


def test_the_best_reference_counts():
    assert text_quality("f1", "red green", ["blue", "red green blue", "green"]) == pytest.approx(0.8)


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="measure is 'bleurt'; allowed: rougeL, f1, exact_match, chrf, bleu"):
        text_quality("bleurt", "a", ["a"])
