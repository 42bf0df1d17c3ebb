"""Buckets of lengths and batches, and prompts that become token ids."""

import pytest
import tokenizers
import transformers

import dvp_jax
from dvp_jax.decode.text import batch_bucket, decode_tokens, source_bucket, token_pieces, token_rows
from tests.decode.helpers import DVP, MODEL, lettered
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.parametrize(("length", "bucket"), [(32, 32), (33, 64), (512, 512), (513, 1024), (1500, 1536)])
def test_source_buckets(length, bucket):
    assert source_bucket(length) == bucket


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_batch_buckets(rows, bucket):
    assert batch_bucket(rows) == bucket


def test_long_prompts_are_truncated_with_a_warning_that_counts_them():
    with pytest.warns(UserWarning, match="2 of 3 prompts are longer than 5 tokens and were truncated"):
        texts = dvp_jax.generate_text(lettered(), ["abcdefgh", "ab", "hgfedcba"], DVP, max_source_length=5)
    assert texts[0].tokens == dvp_jax.generate_text(lettered(), ["abcd"], DVP)[0].tokens


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", ["$A", "$A </s>", "<s> $A </s>"])
@pytest.mark.filterwarnings("ignore:1 of 2 prompts are longer")
def test_texts_are_truncated_as_by_their_tokenizer(template, side):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"{i}": i for i in range(20)}, unk_token="0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [("<s>", 20), ("</s>", 21)]
    words.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, truncation_side=side)
    texts = ["5 6 7", " ".join(map(str, range(19)))]
    expected = peer(texts, truncation=True, max_length=8)["input_ids"]
    assert list(map(len, expected)) == [3 + len(template.split()) - 1, 8]
    assert token_rows(peer, texts, 8, "prompts") == expected
    assert words.truncation is None, "it would be saved with the tokenizer"


def test_a_text_without_a_token_is_refused():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))  # it adds no end token
    words.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ValueError, match=r"prompts\[1\] is '\\u200b'; allowed: a text that has a token"):
        token_rows(peer, ["a", "\u200b"], 8, "prompts")


@pytest.mark.filterwarnings("error")  # nothing is said of truncated prompts
def test_an_impossible_length_of_sources_is_refused():
    with pytest.raises(ValueError, match="max_source_length is 0; allowed: an integer of at least 1"):
        dvp_jax.generate_text(lettered(), ["abcd"], DVP, max_source_length=0)


def test_prompts_that_are_none_are_refused():
    for prompts, message in (
        ([], r"prompts is \[\]; allowed: a list of at least one text"),
        ("abc", "prompts is 'abc'; allowed: a list"),
        (["abc", " "], r"prompts\[1\] is ' '; allowed: a text that is not empty"),
        ([None], r"prompts\[0\] is None"),
        (
            ["abc", "ab\ud83d"],
            r"prompts\[1\] has '\\ud83d', half a surrogate pair, as character 3; allowed: whole",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dvp_jax.generate_text(lettered(), prompts, DVP)
    with pytest.raises(ValueError, match=r"model\.tokenizer is None"):
        dvp_jax.generate_text(both(*MODEL)[1], ["abc"], DVP)


@pytest.mark.parametrize("missing", [32_110, 10_000_000])
def test_an_id_without_a_piece_is_no_text_and_is_shown_as_an_id(missing, shared):
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "t5")
    ids = tokenizer("Ein Hund.")["input_ids"]
    with_missing = [ids[0], missing, *ids[1:]]
    assert decode_tokens(tokenizer, with_missing, skip_special_tokens=True) == "Ein Hund."
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert token_pieces(tokenizer, with_missing) == [pieces[0], f"<id {missing}>", *pieces[1:]]


def test_an_id_beyond_the_bytes_of_byt5_is_no_text():
    tokenizer = transformers.ByT5Tokenizer()
    assert decode_tokens(tokenizer, [*tokenizer("hé\n", add_special_tokens=False)["input_ids"], 400]) == "hé\n"
    assert token_pieces(tokenizer, [107, 383, 400]) == ["h", "<extra_id_124>", "<id 400>"]
