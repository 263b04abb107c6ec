"""The server of tests/test_serving_process.py, in a process of its own.

Usage: serving_child.py JSON: {"options": ServeOptions' fields, "delay": seconds a batch takes, "labels_file": path or
null}. With "labels_file" the model's labels are read from that file at every load, so that a reload can be seen.
"""

import json
import sys

from serving_fakes import KnownPredictor

from ftbert.serving import server
from ftbert.serving.options import ServeOptions


def main() -> None:
    settings = json.loads(sys.argv[1])

    def load(_options, path):
        labels = ("none", "one", "two")
        if path != "known":
            with open(path, encoding="utf-8") as file:
                labels = file.read().split()
        predictor = KnownPredictor(labels)
        warm_up = predictor.predict_ids

        def slow_after_the_first(batch):
            values = warm_up(batch)
            predictor.delay, predictor.predict_ids = settings.get("delay", 0.0), warm_up
            return values

        predictor.predict_ids = slow_after_the_first
        return predictor

    ServeOptions.load = load
    server.run(
        {"known": settings.get("labels_file") or "known"},
        ServeOptions(**dict({"port": 0}, **settings.get("options", {}))),
    )
    sys.exit(3 if "tensorflow" in sys.modules else 0)


main()
