"""Trains the small classifier that ships with ftbert, from nothing but examples/data, and measures it on held-out
sentences.

    python examples/train_demo.py                      # writes ftbert/demo_model
    python examples/train_demo.py --epochs 1 --output /tmp/demo   # a quick look

A tenth of the training sentences decides which epoch is kept; intents_test.tsv is looked at once, at the end.
"""

import argparse
import json
import os
import shutil

import ftbert
from ftbert.rows import read_rows

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "data")


def train(output, epochs, seed):
    """Fine-tunes from scratch: 2 layers of 256, word pieces made from the sentences themselves."""
    return ftbert.finetune(
        train=os.path.join(DATA, "intents_train.tsv"),
        output=output,
        config={
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "initializer_range": 0.05,
        },
        vocab_size=4000,
        epochs=epochs,
        batch_size=32,
        learning_rate=3e-4,
        dropout=0.4,
        classifier_dropout=0.4,
        word_dropout=0.0,
        label_smoothing=0.1,
        max_length=64,
        precision="fp16",
        seed=seed,
        tensorboard=False,
        report=False,
    )


def measure(model):
    """Accuracy on the held-out sentences, all of them and by script."""
    rows = list(read_rows(os.path.join(DATA, "intents_test.tsv")))
    with ftbert.FastBertClassifier.load(model, device="cpu", precision="fp32", runtime="direct") as classifier:
        right = [p.label == row.record["label"] for row, p in zip(rows, classifier.predict([row.text for row in rows]))]
    chinese = [any("\u4e00" <= character <= "\u9fff" for character in row.text) for row in rows]

    def share(chosen):
        return round(sum(chosen) / len(chosen), 4)

    return {
        "rows": len(rows),
        "accuracy": share(right),
        "accuracy_chinese": share([r for r, c in zip(right, chinese) if c]),
        "accuracy_english": share([r for r, c in zip(right, chinese) if not c]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=os.path.join(os.path.dirname(HERE), "ftbert", "demo_model"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = train(arguments.output, arguments.epochs, arguments.seed)
    held_out = dict(measure(arguments.output), best_epoch=result.best_epoch, seed=arguments.seed)
    # Beside the weights, so that the figure travels with the model it belongs to.
    with open(os.path.join(arguments.output, "held_out.json"), "w") as file:
        json.dump(held_out, file, indent=1)
        file.write("\n")
    shutil.rmtree(result.run_folder)
    size = sum(os.path.getsize(os.path.join(arguments.output, name)) for name in os.listdir(arguments.output))
    print("%s: %.1f MB, held-out %s" % (arguments.output, size / 1e6, held_out))


if __name__ == "__main__":
    main()
