"""A TensorFlow SavedModel of plain operations, for TensorFlow Serving and anyone's own code."""

import json
import os
from typing import Any, Dict

from ftbert.checkpoint import ModelFolder, load_model_folder
from ftbert.checkpoint.streams import new_folder
from ftbert.errors import UnavailableError
from ftbert.paths import PathLike, as_path
from ftbert.tokenization import Tokenizer

__all__ = ["export_saved_model"]


def export_saved_model(model: PathLike, dst: PathLike) -> str:
    """Writes a SavedModel that any TensorFlow from 1.14 on loads without ftbert.

    Signature "serving_default": int32 (B, S) input_ids, input_mask (1 for tokens, 0 for padding) and segment_ids;
    float32 outputs logits and probabilities (B, C), or, where there is no classifier, sequence_output (B, S, H) and
    pooled_output (B, H). Weights are float32, whatever they were. assets.extra holds vocab.txt, labels.txt and
    settings.json: the SavedModel reads token ids, not text.

    Args:
        model: a model folder of any kind that `FastBertClassifier.load` reads.
        dst: a new or empty folder; written whole, or left as it was on any failure.

    Returns:
        dst.

    Raises:
        CheckpointError: `model` is no whole model, or `dst` is taken.
        UnavailableError: there is no TensorFlow here.
    """
    try:
        from tensorflow.compat import v1 as tf
    except ImportError as error:
        raise UnavailableError(
            "export_saved_model: expected TensorFlow to write its format, found none (%s). "
            "pip install tensorflow-cpu, or use export_onnx, which needs none." % error
        ) from error
    from ftbert.modeling import assign_weights

    source = load_model_folder(model)
    with new_folder(dst) as folder, tf.Graph().as_default(), tf.Session() as session:
        with tf.variable_scope("", custom_getter=_old_variable):
            inputs, outputs, variables = _build(tf, source)
        missing = assign_weights(session, variables, source.weights())
        if missing:
            session.run([variables[name].initializer for name in missing])
        # The builder makes its folder itself, and must not find one.
        os.rmdir(folder)
        builder = tf.saved_model.Builder(folder)
        signature = tf.saved_model.predict_signature_def(inputs, outputs)
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.tag_constants.SERVING],
            {tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
            strip_default_attrs=True,  # older versions refuse attributes that they do not know
            clear_devices=True,
        )
        builder.save()
        _write_extras(os.path.join(folder, "assets.extra"), source)
    return as_path(dst)


def _old_variable(getter: Any, *args: Any, **options: Any) -> Any:
    """A variable of the kind that every TensorFlow loads: a resource variable has attributes that older ones refuse."""
    return getter(*args, **dict(options, use_resource=False))


def _build(tf: Any, source: ModelFolder) -> Any:
    """(inputs, outputs, variables) by name, in the current graph."""
    from ftbert.modeling import BertModel, apply_classifier

    inputs = {name: tf.placeholder(tf.int32, [None, None], name) for name in ("input_ids", "input_mask", "segment_ids")}
    classifies = source.num_labels > 0
    model = BertModel(
        source.config,
        is_training=False,
        input_ids=inputs["input_ids"],
        input_mask=inputs["input_mask"],
        token_type_ids=inputs["segment_ids"],
        first_token_only=classifies,
    )
    if classifies:
        logits = apply_classifier(model, source.num_labels)
        probabilities = tf.sigmoid(logits) if source.problem_type == "multi_label" else tf.nn.softmax(logits)
        outputs = {"logits": logits, "probabilities": probabilities}
    else:
        outputs = {"sequence_output": model.get_sequence_output()}
        if source.has_pooler:
            outputs["pooled_output"] = model.get_pooled_output()
    outputs = {name: tf.identity(output, name) for name, output in outputs.items()}
    return inputs, outputs, model.variables


def _write_extras(folder: str, source: ModelFolder) -> None:
    os.makedirs(folder)
    tokenizer = Tokenizer.from_folder(source.path)
    tokenizer.save(folder)
    settings: Dict[str, Any] = {
        "tokenizer": tokenizer.settings(),
        "max_length": source.max_length or source.config.max_position_embeddings,
        "problem_type": source.problem_type,
        "labels": source.labels,
    }
    with open(os.path.join(folder, "settings.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file, ensure_ascii=False, indent=2)
        file.write("\n")
    if source.labels:
        with open(os.path.join(folder, "labels.txt"), "w", encoding="utf-8", newline="\n") as file:
            file.write("".join(label + "\n" for label in source.labels))
