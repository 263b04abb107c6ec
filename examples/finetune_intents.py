"""From a TSV to predictions: trains a small classifier on data/ and asks it."""

import os
import tempfile

import ftbert

data = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
with tempfile.TemporaryDirectory() as folder:
    result = ftbert.finetune(
        train=os.path.join(data, "intents_train.tsv"),
        dev=os.path.join(data, "intents_test.tsv"),
        pretrained=None,  # the folder of a pretrained BERT; None: a small model from scratch
        output=os.path.join(folder, "intents"),
        max_length=64,
    )
    print("accuracy on the dev rows: %.1f%%" % (100 * result.metrics["accuracy"]))
    with ftbert.FastBertClassifier.load(result.output) as clf:
        print(clf.predict(["我的卡丢了怎么办", "I want my money back"]))
