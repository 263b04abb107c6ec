"""The checkpoint tools on a real BERT-base checkpoint with optimizer slots: what they keep, how fast, how much memory.

    python benchmarks/checkpoint_tools.py --work /some/empty/folder \\
        --tensorflow 2.21=/path/to/python --tensorflow 1.14=/path/to/python

The first two TensorFlows named train one step of the graph of `ftbert.modeling` (bert-base-chinese's sizes) and save
it: one with google-research/bert's AdamW (adam_m, adam_v), one with tf.train.AdamOptimizer (Adam, Adam_1, beta powers).
The tools then run in processes without TensorFlow, and every TensorFlow named restores what they wrote.
Results: benchmarks/results/checkpoint_tools.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
from common import machine, revision

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from ftbert import checkpoint  # noqa: E402
from ftbert.config import BertConfig  # noqa: E402

CONFIG = BertConfig(vocab_size=21128)
NUM_LABELS = 15


def size_of(prefix):
    """Bytes of a checkpoint's files."""
    folder, base = os.path.split(prefix)
    return sum(
        os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder) if name.startswith(base + ".")
    )


def make(prefix, optimizer):
    """One training step of the real graph on random tokens, saved by tf.train.Saver. Needs TensorFlow."""
    import tensorflow
    from tensorflow.compat import v1 as tf

    from ftbert.modeling import BertModel, apply_classifier, classification_loss
    from ftbert.training.optimization import create_train_op

    draw = np.random.RandomState(0)
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        ids = tf.constant(draw.randint(0, CONFIG.vocab_size, (4, 32)), tf.int32)
        model = BertModel(CONFIG, True, ids, first_token_only=True)
        logits = apply_classifier(model, NUM_LABELS, is_training=True)
        loss = tf.reduce_mean(classification_loss(logits, tf.constant([0, 3, 5, 14])))
        if optimizer == "adamw":
            step = create_train_op(2e-5, 1000)(loss)
        else:
            global_step = tf.train.get_or_create_global_step()
            step = tf.train.AdamOptimizer(2e-5).minimize(loss, global_step)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            value, _ = session.run([loss, step])
            tf.train.Saver().save(session, prefix, global_step=1, write_meta_graph=False)
    return {"tensorflow": tensorflow.__version__, "optimizer": optimizer, "loss": float(value)}


def restore(original, stripped, half):
    """What this TensorFlow makes of the tools' output: bit-equality after tf.train.Saver, and half precision."""
    import tensorflow
    from tensorflow.compat import v1 as tf

    from ftbert.checkpoint import load_model_folder
    from ftbert.modeling import BertModel, apply_classifier, assign_weights

    draw = np.random.RandomState(1)
    rows = draw.randint(0, CONFIG.vocab_size, (4, 48)).astype(np.int32)
    result = {"tensorflow": tensorflow.__version__}
    reader = tf.train.NewCheckpointReader(original)
    with tf.Graph().as_default(), tf.Session() as session:
        ids = tf.placeholder(tf.int32, [None, None])
        model = BertModel(CONFIG, False, ids, first_token_only=True)
        logits = apply_classifier(model, NUM_LABELS)
        saver = tf.train.Saver(model.variables)
        saver.restore(session, stripped)
        for name, variable in model.variables.items():
            assert session.run(variable).tobytes() == reader.get_tensor(name).tobytes(), name
        result["bit_equal_tensors"] = len(model.variables)
        single = session.run(logits, {ids: rows})
        folder = os.path.dirname(half)
        assert assign_weights(session, model.variables, load_model_folder(folder).weights()) == []
        widened = session.run(logits, {ids: rows})
        result["logits_fp32_spread"] = float(single.std())
        result["logits_fp16_in_fp32_graph_largest_difference"] = float(np.abs(widened - single).max())
        saver.restore(session, half.replace("half", "widened"))
        result["widened_by_to_fp32_equals_our_loader"] = bool(np.array_equal(session.run(logits, {ids: rows}), widened))
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {
            name: tf.get_variable(name, reader.get_variable_to_shape_map()[name], tf.float16, tf.zeros_initializer())
            for name in model.variables
        }
        tf.train.Saver(variables).restore(session, half)
        for name, variable in variables.items():
            expected = reader.get_tensor(name).astype(np.float16)
            assert session.run(variable).tobytes() == expected.tobytes(), name
        result["fp16_tensors_restored_into_an_fp16_graph"] = len(variables)
    return result


def peak_memory():
    """Most bytes that this process ever had resident. (getrusage would count what its parent had when it forked.)"""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def run_tool(tool, source, target):
    """One tool in this process: seconds, MB/s of the larger of what it reads and writes, memory above the import."""
    before = peak_memory()
    begin, used = time.perf_counter(), time.process_time()
    if tool == "average":
        report = checkpoint.average([source, source], target)
    elif tool == "convert":
        report = checkpoint.convert(source, target, "huggingface")
    else:
        report = getattr(checkpoint, tool)(source, target)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    peak = peak_memory() - before
    kept = [tensor for tensor in checkpoint.inspect(source).tensors if not tensor.is_optimizer]
    read = sum(tensor.nbytes for tensor in kept) * (2 if tool == "average" else 1)
    written = checkpoint.inspect(target).nbytes
    return {
        "tool": tool,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used, 3),
        "bytes_read": read,
        "bytes_written": written,
        "MB_per_s": round(max(read, written) / seconds / 1e6),
        "peak_MB_above_import": round(peak / 1e6, 1),
        "allowed_MB_above_import": round((2.5 * max(tensor.nbytes for tensor in kept)) / 1e6 + 200, 1),
        "report": str(report).replace(os.path.dirname(source), "..."),
    }


def child(python, *arguments):
    """Runs this script's other half in another interpreter; returns what it prints last, as JSON."""
    command = [python, os.path.abspath(__file__)] + list(arguments)
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if output.returncode:
        raise SystemExit("%s failed:\n%s" % (" ".join(command), output.stderr[-4000:]))
    return json.loads(output.stdout.splitlines()[-1])


def warm(prefix):
    """Brings a checkpoint into the page cache."""
    folder, base = os.path.split(prefix)
    for name in os.listdir(folder):
        if name.startswith(base):
            with open(os.path.join(folder, name), "rb") as file:
                while file.read(1 << 24):
                    pass


def measure(work, version, python, optimizer, pythons, runner, repeats):
    """All steps for the checkpoint that one TensorFlow wrote."""
    folder = os.path.join(work, version)
    os.makedirs(os.path.join(folder, "trained"))
    prefix = os.path.join(folder, "trained", "model.ckpt")
    made = child(python, "make", prefix, optimizer)
    original = prefix + "-1"
    with open(os.path.join(folder, "trained", "bert_config.json"), "w") as file:
        json.dump(dict(CONFIG.to_dict("google")), file)
    with open(os.path.join(folder, "trained", "vocab.txt"), "w") as file:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        file.write("".join("%s\n" % piece for piece in special + ["w%d" % i for i in range(CONFIG.vocab_size - 5)]))
    chain = [
        ("strip_optimizer", "trained", "stripped"),
        ("to_fp16", "stripped", "half"),
        ("to_bf16", "stripped", "brain"),
        ("to_fp32", "half", "widened"),
        ("average", "stripped", "mean"),
        ("convert", "stripped", "huggingface"),
    ]
    steps = []
    for tool, source, target in chain:
        where = original if source == "trained" else os.path.join(folder, source, "model.ckpt")
        best = None
        for _ in range(repeats):
            out = os.path.join(folder, target)
            subprocess.check_call(["rm", "-rf", out])
            warm(where)
            result = child(runner, "tool", tool, os.path.dirname(where), out)
            if best is None or result["seconds"] < best["seconds"]:
                best = result
        steps.append(best)
        print(
            "%-16s %6.2f s %6d MB/s  peak %6.1f MB"
            % (tool, best["seconds"], best["MB_per_s"], best["peak_MB_above_import"])
        )
    stripped, half = (os.path.join(folder, name, "model.ckpt") for name in ("stripped", "half"))
    first, second = checkpoint.open_checkpoint(original), checkpoint.open_checkpoint(stripped)
    for name in second.names():
        assert first.read(name).tobytes() == second.read(name).tobytes(), name
    restored = [child(other, "restore", original, stripped, half) for other in pythons]
    for line in restored:
        print("  restored by", line)
    return {
        "written_by": made,
        "bytes": {"trained": size_of(original), "stripped": size_of(stripped), "half": size_of(half)},
        "tensors": {"trained": len(first.names()), "stripped": len(second.names())},
        "steps": steps,
        "restored_by": restored,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="an empty folder with 8 GB of room")
    parser.add_argument("--tensorflow", action="append", required=True, metavar="VERSION=PYTHON")
    parser.add_argument("--runner", default=sys.executable, help="the interpreter that runs the tools")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=os.path.join(HERE, "results", "checkpoint_tools.json"))
    options = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in options.tensorflow)
    results = {
        "about": "best of %d, page cache warm, fsync and checksums of both sides included" % options.repeats,
        "machine": machine(),
        "revision": revision(),
        "checkpoints": [],
    }
    for version, optimizer in zip(pythons, ("adamw", "adam")):
        python = pythons[version]
        print(version, optimizer)
        results["checkpoints"].append(
            measure(options.work, version, python, optimizer, list(pythons.values()), options.runner, options.repeats)
        )
        subprocess.check_call(["rm", "-rf", os.path.join(options.work, version)])
    results["runner"] = child(options.runner, "versions")
    with open(options.output + ".writing", "w") as file:
        json.dump(results, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(options.output + ".writing", options.output)


CHILDREN = {
    "make": make,
    "restore": restore,
    "tool": run_tool,
    "versions": lambda: {"python": platform.python_version(), "numpy": np.__version__},
}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CHILDREN:
        print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
