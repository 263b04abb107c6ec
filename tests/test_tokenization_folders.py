"""Tokenizers of folders: vocabularies and settings, read, guessed, saved and refused."""

import json
import warnings

import pytest
from bert_words import tokenize
from small_tokenizers import LETTERS, SPECIAL, tokenizer_of

from ftbert.errors import CheckpointError
from ftbert.tokenization import FullTokenizer, Tokenizer


def write_vocab(folder, pieces):
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")


UPPER = SPECIAL + [chr(code) + "word" for code in range(65, 91)] + ["##" + letter for letter in LETTERS]
LOWER = SPECIAL + [chr(code) + "word" for code in range(97, 123)] + ["##" + letter for letter in LETTERS]


@pytest.mark.parametrize("pieces, lower_case", [(LOWER, True), (UPPER, False)])
def test_case_is_seen_in_the_vocabulary(tmp_path, pieces, lower_case):
    write_vocab(tmp_path, pieces)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.lower_case is lower_case and tokenizer.strip_accents is lower_case
    assert tokenizer.max_word_chars == 200


@pytest.mark.parametrize("pieces, lower_case", [(LOWER, False), (UPPER, True)])
def test_a_contradiction_is_warned_about(tmp_path, pieces, lower_case):
    write_vocab(tmp_path, pieces)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower_case}))
    with pytest.warns(UserWarning, match="this looks like a"):
        tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.lower_case is lower_case  # as asked for: warned, not changed


def test_a_chinese_vocabulary_warns_of_nothing(tmp_path):
    write_vocab(tmp_path, SPECIAL + [chr(code) for code in range(0x4E00, 0x4F00)] + ["A", "##b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lower_case in (True, False):
            Tokenizer.from_folder(str(tmp_path), lower_case=lower_case)


def test_hugging_face_settings(tmp_path):
    write_vocab(tmp_path, LOWER)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False})
    )
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.settings() == {
        "lower_case": True,
        "strip_accents": False,
        "chinese_chars": False,
        "max_word_chars": 100,
    }


def test_tokenizer_json_alone(tmp_path):
    saved = Tokenizer(LOWER, True)._whole
    saved.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.vocab == LOWER and tokenizer.lower_case and tokenizer.max_word_chars == 200
    assert tokenizer.pieces("Awordb") == ["aword", "##b"]


def test_googles_class(tmp_path):
    tokenizer = tokenizer_of(True)
    tokenizer.save(tmp_path)
    google = FullTokenizer(tmp_path / "vocab.txt", do_lower_case=True)
    text = "The caf\u00e9 \u5361\u4e22 [SEP] \U0001f600 xyz"
    tokens = google.tokenize(text)
    assert tokens == tokenize(text, google.vocab, True)
    ids = google.convert_tokens_to_ids(["[CLS]", *tokens, "[SEP]"])
    assert ids == tokenizer.encode([text]).batch.token_ids.tolist()
    assert google.convert_ids_to_tokens(ids) == ["[CLS]", *tokens, "[SEP]"]


def test_a_vocabulary_that_does_not_fit_the_model():
    tokenizer = tokenizer_of(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.check_fits("m", tokenizer.vocab_size)
        tokenizer.check_fits("m", tokenizer.vocab_size + 127)
    with pytest.raises(CheckpointError, match="m: the vocabulary has .* of different models"):
        tokenizer.check_fits("m", tokenizer.vocab_size - 1)
    with pytest.warns(UserWarning, match="another model's vocabulary"):
        tokenizer.check_fits("m", tokenizer.vocab_size + 128)


def test_save_and_load(tmp_path):
    tokenizer = tokenizer_of(True)
    tokenizer.save(str(tmp_path))
    again = Tokenizer.from_vocab(str(tmp_path / "vocab.txt"), lower_case=True)
    assert again.vocab == tokenizer.vocab and again.settings() == tokenizer.settings()


def test_what_is_no_vocabulary(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected vocab.txt or tokenizer.json"):
        Tokenizer.from_folder(str(tmp_path))
    write_vocab(tmp_path, ["a", "b"])
    with pytest.raises(CheckpointError, match=r"lacks \[CLS\], \[SEP\], \[UNK\]"):
        Tokenizer.from_folder(str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="UTF-8"):
        Tokenizer.from_folder(str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    with pytest.raises(CheckpointError, match="expected a WordPiece model, got 'BPE'"):
        Tokenizer.from_folder(str(tmp_path))


def test_windows_line_ends_and_blank_lines_count_as_google_counts(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[UNK]\r\n[CLS]\r\n\r\n[SEP]\r\n的\r\n".encode())
    assert Tokenizer.from_folder(str(tmp_path)).vocab == ["[UNK]", "[CLS]", "", "[SEP]", "的"]
