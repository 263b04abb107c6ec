import dataclasses
import json

import pytest

from ftbert.config import ACTIVATIONS, BertConfig
from ftbert.errors import ConfigError

GOOGLE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 21128,
}


def test_gelu_means_what_its_source_computes():
    assert BertConfig.from_dict(GOOGLE, "google").hidden_act == "gelu_tanh"
    assert BertConfig.from_dict(GOOGLE, "huggingface").hidden_act == "gelu_erf"


def test_huggingface_names_are_read():
    config = BertConfig.from_dict(
        dict(GOOGLE, layer_norm_eps=1e-7, model_type="bert", id2label={"0": "a"}), "huggingface"
    )
    assert config.norm_epsilon == 1e-7


@pytest.mark.parametrize("source", sorted(ACTIVATIONS))
def test_to_dict_is_the_inverse(source):
    names = ACTIVATIONS[source]
    for act in set(names.values()):
        config = BertConfig(100, hidden_size=12, num_attention_heads=3, hidden_act=act)
        assert BertConfig.from_dict(json.loads(json.dumps(config.to_dict(source))), source) == config


def test_it_is_frozen():
    config = BertConfig(10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 11


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 0}, "vocab_size: expected a positive integer, got 0"),
        ({"vocab_size": "30522"}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": 770}, r"multiple of num_attention_heads \(12\), got 770"),
        ({"hidden_size": 1548 * 12}, "head size of at most 128"),
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"model_type": "roberta"}, "model_type: expected 'bert', got 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        BertConfig.from_dict(dict(GOOGLE, **change), "google")


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match="hidden_size, .*num_attention_heads|num_attention_heads"):
        BertConfig.from_dict({"vocab_size": 5}, "google")
    with pytest.raises(ConfigError, match="JSON object"):
        BertConfig.from_dict([1], "google")
    with pytest.raises(ConfigError, match="source"):
        BertConfig.from_dict(GOOGLE, "torch")


def test_of_takes_googles_own_object():
    class Google:  # as modeling.py has it: attributes, and to_dict()
        def to_dict(self):
            return dict(GOOGLE, directionality="bidi")

    assert BertConfig.of(Google()) == BertConfig.from_dict(GOOGLE) == BertConfig.of(BertConfig.from_dict(GOOGLE))
    for wrong in (GOOGLE, "bert_config.json", None):
        with pytest.raises(ConfigError, match="config: expected a BertConfig .* got"):
            BertConfig.of(wrong)


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "bert_config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="bert_config.json"):
        BertConfig.from_json_file(path, "google")
    path.write_text(json.dumps(GOOGLE))
    assert BertConfig.from_json_file(path).num_hidden_layers == 12
