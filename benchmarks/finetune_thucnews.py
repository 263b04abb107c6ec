"""Chinese news titles from scratch, by the command line alone, beside a character n-gram logistic regression.

    python benchmarks/finetune_thucnews.py --data <folder with train.tsv, dev.tsv> --sklearn-python <python with it>

A tenth of the training rows decides which epoch is kept; dev.tsv is predicted once, at the end.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
}

REGRESSION = """
import csv, json, sys
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in found], [row["label"] for row in found]

train, labels = rows(sys.argv[1])
dev, expected = rows(sys.argv[2])
vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
model = LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(train), labels)
print(json.dumps({"accuracy": model.score(vectorizer.transform(dev), expected), "version": sklearn.__version__}))
"""


def run(*command):
    """Runs a command, shows it, and returns its standard output."""
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        raise SystemExit("failed with %d" % done.returncode)
    return done.stdout


def column(path, name):
    """One column of a TSV with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--sklearn-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default=os.path.join(HERE, "results", "finetune_thucnews.json"))
    arguments = parser.parse_args()
    train, dev = (os.path.join(arguments.data, name) for name in ("train.tsv", "dev.tsv"))
    options = ["--epochs", str(arguments.epochs), "--learning-rate", "5e-4", "--max-length", "64"]
    options += ["--vocab-size", "6000"]
    options += ["--label-smoothing", "0.1", "--threads", str(arguments.threads), "--precision", "fp16"]
    for name, value in (("dropout", 0.3), ("classifier_dropout", 0.3), ("word_dropout", 0.2)):
        options += ["--option", "%s=%s" % (name, value)]
    with tempfile.TemporaryDirectory() as folder:
        model, answers = os.path.join(folder, "news"), os.path.join(folder, "answers.tsv")
        ftbert = [sys.executable, "-m", "ftbert"]
        begun = time.time()
        run(*ftbert, "finetune", "--train", train, "--output", model, "--config", json.dumps(SIZES), *options)
        trained = time.time() - begun
        run(*ftbert, "predict", model, dev, "--output", answers, "--no-scores")
        expected = column(dev, "label")
        with open(answers, encoding="utf-8") as file:
            names = file.readline().rstrip("\n").split("\t")
        predicted = column(answers, "predicted_label" if "predicted_label" in names else "label")
        assert len(predicted) == len(expected)
        accuracy = sum(one == other for one, other in zip(predicted, expected)) / len(expected)
        with open(os.path.join(model, "ftbert.json"), encoding="utf-8") as file:
            training = json.load(file)["training"]
    regression = json.loads(run(arguments.sklearn_python, "-c", REGRESSION, train, dev))
    result = {
        "what": "thucnews titles, 8,500 train and 1,500 dev rows, 10 labels; from scratch, through `ftbert finetune` "
        "and `ftbert predict`",
        "dev_accuracy": {
            "ftbert, 2 layers of 256 from scratch": round(accuracy, 5),
            "logistic regression on character 1- to 3-grams": round(regression["accuracy"], 5),
        },
        "epoch_kept": training["best_epoch"],
        "training_seconds": round(trained, 1),
        "recipe": training["recipe"],
        "versions": {"tensorflow": training["tensorflow"], "scikit-learn": regression["version"]},
        "machine": {"cpu": platform.machine(), "threads": arguments.threads, "load": os.getloadavg()[0]},
        "date": time.strftime("%Y-%m-%d"),
    }
    with open(arguments.output + ".writing", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(arguments.output + ".writing", arguments.output)
    print(json.dumps(result["dev_accuracy"], indent=2))


if __name__ == "__main__":
    main()
