"""The tokenizer against a plain-Python twin of google-research/bert's, over all of Unicode, and its rows."""

import random
import types
import unicodedata

import numpy as np
import pytest
from bert_words import basic_words, tokenize, truncate_pair
from small_tokenizers import small_vocab, tokenizer_of

from ftbert.errors import ConfigError, InputError
from ftbert.tokenization import _PLAIN, TRUNCATIONS, check_texts
from ftbert.words import WordSplitter


def pieces_of(tokenizer, texts):
    """What `encode` makes of each text, as pieces between [CLS] and [SEP]."""
    batch = tokenizer.encode(texts, max_length=1 << 20).batch
    rows = [batch.token_ids[begin + 1 : end - 1] for begin, end in zip(batch.row_splits, batch.row_splits[1:])]
    return [[tokenizer.vocab[index] for index in row] for row in rows]


def random_text(source):
    """A string of 0 to 24 characters: of all Unicode, of the common scripts, or of what the vocabulary knows."""
    draw = source.random()
    alphabet = small_vocab(False)[5:70]
    chars = []
    for _ in range(source.randrange(25)):
        kind = source.random()
        if kind < draw:
            chars.append(source.choice(alphabet))
        elif kind < 0.5 + draw / 2:
            chars.append(chr(source.randrange(0x3000)))
        elif kind < 0.9:
            chars.append(chr(source.randrange(0x110000)))
        else:
            chars.append(source.choice(" \t\n\u2028\u3000ΣσİıßéÅﬁ的\u0301\u0323\u302e\u200d\ufeff\ue000\ufffd\x00\x85"))
    return "".join(chars)


@pytest.mark.parametrize("lower_case", [True, False])
def test_random_strings_over_all_of_unicode(lower_case):
    tokenizer = tokenizer_of(lower_case)
    vocab = set(tokenizer.vocab)
    source = random.Random(20 + lower_case)
    known = 0
    for _ in range(25):
        texts = [random_text(source) for _ in range(2000)]
        for text, got in zip(texts, pieces_of(tokenizer, texts)):
            expected = tokenize(text, vocab, lower_case)
            assert got == expected, ascii(text)
            known += sum(piece != "[UNK]" for piece in got)
    assert known > 50000  # the strings are not all unknown words


@pytest.mark.parametrize("lower_case", [True, False])
def test_every_character_that_goes_to_rust_is_split_alike(lower_case):
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=lower_case), BertPreTokenizer()
    plain = [chr(code) for code in range(0x110000) if _PLAIN.fullmatch(chr(code))]
    assert len(plain) > 45000
    for char in plain:
        # Marks would change places when decomposed, and what stands beside them would matter.
        assert not unicodedata.combining(char)
        text = "a" + char + "B"
        got = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
        assert got == basic_words(text, lower_case), ascii(char)


@pytest.mark.parametrize("lower_case", [True, False])
def test_every_character_of_unicode_is_split_alike(lower_case):
    splitter = WordSplitter(lower_case, lower_case, True)
    # Planes 4 to 13 are unassigned, 15 and 16 private: each of their characters is like the next.
    codes = list(range(0x40000)) + list(range(0xE0000, 0xF0000)) + list(range(0x40000, 0x110000, 97))
    for code in codes:
        text = "a" + chr(code) + "B"
        if 0xD800 <= code < 0xE000:  # no UTF-8 vocabulary has it; a non-character takes its place on the way to Rust
            assert splitter.split(text) == ["a\uffffb" if lower_case else "a\uffffB"]
        elif splitter.split(text) != basic_words(text, lower_case):
            raise AssertionError(ascii(text))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        (" \t\n\r\u3000\u2028 ", []),
        ("\x00\ufffd\x07\u200b", []),
        ("unwanted", ["unwanted"]),
        ("UNWANTED running", ["unwanted", "runn", "##ing"]),
        ("ab,ab", ["ab", ",", "ab"]),
        ("卡丢", ["卡", "丢"]),
        ("a卡b", ["a", "卡", "b"]),
        ("Éé", ["e", "##e"]),
        ("ΑΣ", ["ας"]),  # a final sigma, by the word
        ("ΑΣΑ", ["ασ", "##α"]),
        ("\U0001f600", ["\U0001f600"]),
        ("\U0001f600\U0001f601", ["[UNK]"]),
        ("a\ud800b the", ["[UNK]", "the"]),  # a lone surrogate spoils its word only
        ("\udfff", ["[UNK]"]),
        ("\ue000 the", ["[UNK]", "the"]),  # private use is kept, and unknown
        ("[SEP] [CLS]", ["[", "s", "##e", "##p", "]", "[", "c", "##l", "##s", "]"]),  # no special token by typing it
    ],
)
def test_known_answers(text, expected):
    tokenizer = tokenizer_of(True)
    assert tokenizer.pieces(text) == expected
    assert expected == tokenize(text, set(tokenizer.vocab), True)


def test_cased_vocabulary_keeps_case_and_accents():
    tokenizer = tokenizer_of(False)
    assert tokenizer.pieces("Ab é ΑΣ") == ["A", "##b", "é", "ΑΣ"]


@pytest.mark.parametrize("limit", [100, 200])
def test_long_words_are_unknown(limit):
    tokenizer = tokenizer_of(True, limit)
    assert tokenizer.pieces("a" * limit) == ["a"] + ["##a"] * (limit - 1)
    assert tokenizer.pieces("a" * (limit + 1)) == ["[UNK]"]
    assert tokenizer.pieces("é" * limit) == ["e"] + ["##e"] * (limit - 1)
    assert tokenizer.pieces("的a" + "\U0001f600" * (limit + 1)) == ["的", "[UNK]"]
    assert tokenizer.pieces("\ud800" * (limit + 1)) == ["[UNK]"]


def rows_of(encoded):
    splits = encoded.batch.row_splits
    return [
        (encoded.batch.token_ids[begin:end].tolist(), encoded.batch.segment_ids[begin:end].tolist())
        for begin, end in zip(splits, splits[1:])
    ]


def test_rows_have_special_tokens_and_segments():
    tokenizer = tokenizer_of(True)
    ids = {piece: index for index, piece in enumerate(tokenizer.vocab)}
    cls_id, sep_id = ids["[CLS]"], ids["[SEP]"]
    encoded = tokenizer.encode(["the", "", ("ab", "want the"), ("", "")])
    assert rows_of(encoded) == [
        ([cls_id, ids["the"], sep_id], [0, 0, 0]),
        ([cls_id, sep_id], [0, 0]),
        ([cls_id, ids["ab"], sep_id, ids["want"], ids["the"], sep_id], [0, 0, 0, 1, 1, 1]),
        ([cls_id, sep_id, sep_id], [0, 0, 1]),
    ]
    assert encoded.batch.token_ids.dtype == encoded.batch.row_splits.dtype == np.int32
    assert encoded.pieces.tolist() == [1, 0, 3, 0] and not encoded.truncated.any()


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
def test_truncation_of_one_text(truncation):
    tokenizer = tokenizer_of(True)
    pieces = list("abcdefghijklmnopqrstuvwxyz")
    text = " ".join(pieces)
    for length in (3, 4, 7, 12, 27, 28, 29):
        encoded = tokenizer.encode([text, "a"], length, truncation)
        (row, _), (short, _) = rows_of(encoded)
        room = length - 2
        head = {"head": room, "tail": 0, "head+tail": room // 4}[truncation]
        expected = pieces if room >= 26 else pieces[:head] + (pieces[head - room :] if room > head else [])
        assert [tokenizer.vocab[index] for index in row[1:-1]] == expected
        assert encoded.truncated.tolist() == [room < 26, False]
        assert len(short) == 3


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
def test_truncation_of_pairs_as_google_does(truncation):
    tokenizer = tokenizer_of(True)
    source = random.Random(3)
    for _ in range(300):
        first, second = ([source.choice("abcdefgh") for _ in range(source.randrange(14))] for _ in range(2))
        length = source.randrange(3, 24)
        encoded = tokenizer.encode([(" ".join(first), " ".join(second))], length, truncation)
        ((row, segments),) = rows_of(encoded)
        kept_first, kept_second = truncate_pair(first, second, length - 3)
        assert len(row) == len(kept_first) + len(kept_second) + 3 <= length
        assert segments.index(1) == len(kept_first) + 2
        got = [tokenizer.vocab[index] for index in row]
        cut = len(first) + len(second) > length - 3
        assert encoded.truncated.tolist() == [cut]
        if truncation == "head" or not cut:
            assert got == ["[CLS]"] + kept_first + ["[SEP]"] + kept_second + ["[SEP]"]
        elif truncation == "tail":
            ends = [part[len(part) - len(kept) :] for part, kept in ((first, kept_first), (second, kept_second))]
            assert got == ["[CLS]"] + ends[0] + ["[SEP]"] + ends[1] + ["[SEP]"]


def test_truncation_error_names_the_text():
    tokenizer = tokenizer_of(True)
    with pytest.raises(InputError, match=r"texts\[1\]: expected at most 4 tokens, got 5"):
        tokenizer.encode(["a b", "a b c"], 4, "error")
    assert tokenizer.encode(["a b"], 4, "error").batch.num_tokens == 4
    many = ["a"] * 5000 + ["a b c"]
    with pytest.raises(InputError, match=r"texts\[5000\]"):
        tokenizer.encode(many, 4, "error")


def test_many_texts_equal_each_text_alone():
    tokenizer = tokenizer_of(True)
    source = random.Random(5)
    texts = [random_text(source) for _ in range(9000)]
    texts[::5] = [(text, random_text(source)) for text in texts[::5]]
    together = tokenizer.encode(texts, 12, "head+tail")
    rows = rows_of(together)
    for index in range(0, 9000, 97):
        alone = tokenizer.encode([texts[index]], 12, "head+tail")
        assert rows_of(alone) == [rows[index]]
        assert alone.truncated[0] == together.truncated[index] and alone.unknown[0] == together.unknown[index]
        assert rows_of(together.rows(index, index + 1)) == [rows[index]]


def test_unknown_rate():
    encoded = tokenizer_of(True).encode(["the the the \u4e01", "", "\u4e01"])
    assert encoded.unknown.tolist() == [1, 0, 1] and encoded.pieces.tolist() == [4, 0, 1]
    assert encoded.unknown_rate == pytest.approx(2 / 5)
    assert tokenizer_of(True).encode([]).unknown_rate == 0.0


def test_no_texts():
    encoded = tokenizer_of(True).encode([])
    assert encoded.batch.num_rows == 0 and encoded.batch.num_tokens == 0 and len(encoded.truncated) == 0


@pytest.mark.parametrize(
    "texts, message",
    [
        ("a text", "single string"),
        (b"a text", "got bytes"),
        (None, "got NoneType"),
        (7, "got int"),
        (["a", None], r"texts\[1\]: expected a string or a pair of strings, got NoneType"),
        (["a", 3.5], r"texts\[1\].*float 3.5"),
        ([b"a"], r"texts\[0\].*bytes.*Decode"),
        ([("a", None)], r"texts\[0\].*tuple"),
        ([("a", "b", "c")], r"texts\[0\].*A pair has two strings"),
        ([{"a": 1}], r"texts\[0\].*dict.*Pass its text alone"),
        ([7], r"texts\[0\].*int 7.*Pass str"),
        (np.array("a"), "got ndarray"),
        ({"text": ["a"]}, "got dict. Pass one column"),
        (types.SimpleNamespace(columns=["text"], __iter__=None), "got SimpleNamespace. Pass one column"),
        ({"a", "b"}, "got set, which has no order"),
    ],
)
def test_what_is_no_text_is_named(texts, message):
    with pytest.raises(InputError, match=message):
        tokenizer_of(True).encode(texts)


def test_check_texts_takes_other_sequences():
    assert check_texts(iter(["a", ["b", "c"]])) == ["a", ("b", "c")]
    assert check_texts(np.array(["a", "b"])) == ["a", "b"]
    assert check_texts(np.array([["a", "b"], ["c", "d"]])) == [("a", "b"), ("c", "d")]
    assert check_texts({"x": "a"}.values()) == ["a"]


@pytest.mark.parametrize(
    "options", [{"max_length": 2}, {"max_length": True}, {"max_length": 5.0}, {"truncation": "middle"}]
)
def test_wrong_options(options):
    with pytest.raises(ConfigError, match="expected"):
        tokenizer_of(True).encode(["a"], **options)


def test_a_million_characters():
    tokenizer = tokenizer_of(True)
    encoded = tokenizer.encode(["the " * 250000, "卡" * 1000000, "\ue000" * 1000000], 128)
    assert np.diff(encoded.batch.row_splits).tolist() == [128, 128, 3]
    assert encoded.truncated.tolist() == [True, True, False]


def test_every_policy_is_tested():
    assert TRUNCATIONS == ("error", "head", "tail", "head+tail")
