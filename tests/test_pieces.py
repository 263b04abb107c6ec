"""The native tokenizer: its table of characters against google's rules, its ids against the Rust library's."""

import pickle
import random
import threading

import numpy as np
import pytest
from bert_words import basic_words

from ftbert import pieces
from ftbert.errors import UnavailableError
from ftbert.pieces import NativePieces, character_table
from ftbert.tokenization import _PLAIN, Tokenizer
from ftbert.words import WordSplitter

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzé的卡か0123456789.,!?#-，。\U0001f600"
VOCAB = [*SPECIAL, *LETTERS, *("##" + letter for letter in LETTERS), "the", "un", "##able", "##ing", "want", "##wants"]


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(VOCAB, True)
    assert made._native is not None, "the native library here is one without the tokenizer: build it again"
    return made


def without_native(tokenizer):
    other = Tokenizer(tokenizer.vocab, tokenizer.lower_case, max_word_chars=tokenizer.max_word_chars)
    other._native = None
    return other


def random_text(source):
    words = ["the", "unwanted", "wanting", "卡丢", "x" * 40, "Éa", "\U0001f600", "#", "##a", "Σας", "한국", "\ue000"]

    def word():
        if source.random() < 0.3:
            return source.choice([*words, "\ud800"])
        return "".join(source.choice(LETTERS) for _ in range(source.randrange(9)))

    return " ".join(word() for _ in range(source.randrange(12)))


@pytest.mark.parametrize("lower_case, chinese_chars", [(True, True), (False, True), (True, False)])
def test_the_table_says_what_google_says_of_every_character(lower_case, chinese_chars):
    table = character_table(lower_case, lower_case, chinese_chars, _PLAIN)
    splitter = WordSplitter(lower_case, lower_case, chinese_chars)
    known = 0
    for code in np.flatnonzero(table).tolist():
        kind, character = int(table[code]) >> 24, chr(int(table[code]) & 0xFFFFFF)
        text = "a" + chr(code) + "b"
        words = {1: ["a" + character + "b"], 2: ["a", "b"], 3: ["a", character, "b"], 4: ["ab"]}[kind]
        assert words == (basic_words(text, lower_case) if chinese_chars else splitter.split(text)), ascii(text)
        assert _PLAIN.fullmatch(chr(code))
        known += 1
    assert known > 34000


@pytest.mark.parametrize("count", [1, 3, 8, 9, 700, 5000])
def test_native_and_rust_give_the_same_rows(tokenizer, count):
    source = random.Random(count)
    texts = [random_text(source) for _ in range(count)]
    pairs = [text if source.random() < 0.5 else (text, random_text(source)) for text in texts]
    rust = without_native(tokenizer)
    for rows in (texts, pairs):
        for truncation in ("head", "tail"):
            ours, theirs = tokenizer.encode(rows, 24, truncation), rust.encode(rows, 24, truncation)
            assert all(np.array_equal(a, b) for a, b in zip(ours.batch, theirs.batch))
            assert all(np.array_equal(a, b) for a, b in zip(ours[1:], theirs[1:]))


def test_texts_that_it_leaves_to_others_are_told_apart(tokenizer):
    ids, lengths = tokenizer._native.encode(["the", "한", "", "want want", "\ud800", "Σ"])
    assert lengths.tolist() == [1, -1, 0, 2, -1, -1]
    assert [tokenizer.vocab[index] for index in ids] == ["the", "want", "want"]
    assert tokenizer._native.rows(["the", "한"]) is None
    assert tokenizer._native.encode([])[0].shape == (0,)


@pytest.mark.parametrize("limit", [1, 3])
def test_long_words(limit):
    made = Tokenizer(VOCAB, True, max_word_chars=limit)
    for text in ("a" * limit, "a" * (limit + 1), "的a。b"):
        assert made.pieces(text) == without_native(made).pieces(text)


def test_the_last_of_equal_pieces_counts():
    vocab = [*SPECIAL, "a", "b", "a", "##c", "##c", ""]
    made = Tokenizer(vocab, True)
    ours, theirs = made.encode(["a ac b"]), without_native(made).encode(["a ac b"])
    assert ours.batch.token_ids.tolist() == theirs.batch.token_ids.tolist()


def test_many_threads_share_one(tokenizer):
    source = random.Random(5)
    texts = [random_text(source) for _ in range(600)]
    expected = tokenizer.encode(texts).batch.token_ids
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(tokenizer.encode(texts).batch.token_ids, expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tokenizer_travels(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert isinstance(copy._native, NativePieces)
    assert copy.pieces("unwanted 卡") == tokenizer.pieces("unwanted 卡")


def test_without_the_native_library_rust_does_it_all(monkeypatch):
    def missing():
        raise UnavailableError("no library")

    monkeypatch.setattr(pieces, "library", missing)
    made = Tokenizer(VOCAB, True)
    assert made._native is None and made.pieces("unwants") == ["un", "##wants"]
