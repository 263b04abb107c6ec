"""Test accuracy of one fine-tuned classifier in every precision of this machine, against fp32.

    python benchmarks/accuracy.py MODEL TEST.csv                  # columns text, category (or label)
    python benchmarks/accuracy.py MODEL TEST.csv --device cpu

The allowed loss is 0.1 point in fp16 and bf16's is only reported, 0.3 point in fp8 and int8. Writes
results/accuracy_<data>_<device>.json; exits 1 where a precision lost more.
"""

import argparse
import csv
import json
import os
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import common  # noqa: E402

from ftbert.calibrate import calibrate  # noqa: E402

ALLOWED_POINTS = {"fp16": 0.1, "fp8": 0.3, "int8": 0.3}


def read(path):
    """Texts and labels of a CSV with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    label = next(name for name in ("category", "label", "intent") if name in rows[0])
    return [row["text"] for row in rows], [row[label] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("test")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", default="banking77", help="its name, for the result")
    parser.add_argument("--what", default="", help="of the model, for the result")
    parser.add_argument("--output")
    given = parser.parse_args()
    texts, labels = read(given.test)
    report = calibrate(given.model, texts, labels, device=given.device, record=False)
    print(report)
    reference = report.results[0].accuracy
    records, good = [], True
    for found in report.results:
        record = {"precision": found.precision, "engine": found.engine, "note": found.note}
        if found.engine:
            record.update(
                accuracy=round(found.accuracy, 5),
                right=round(found.accuracy * len(texts)),
                points_below_fp32=round(100 * (reference - found.accuracy), 3),
                agreement_with_fp32=round(found.agreement, 5),
                largest_difference_of_a_score=round(found.largest_difference, 5),
            )
            allowed = ALLOWED_POINTS.get(found.precision)
            if allowed is not None:
                record["allowed_points"] = allowed
                good = good and record["points_below_fp32"] <= allowed
        records.append(record)
    result = {
        "what": "test accuracy of one model in each precision, by ftbert.calibrate. " + given.what,
        "data": given.data,
        "texts": len(texts),
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "precisions": records,
    }
    if given.output:
        with open(given.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    else:
        card = report.results[0].engine.split(" ", 1)[1].rsplit(" ", 1)[0]
        card = re.sub("[^a-z0-9]+", "_", card.lower()).strip("_") if given.device != "cpu" else "cpu"
        print(common.write_result("accuracy_%s_%s" % (given.data, card), result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
