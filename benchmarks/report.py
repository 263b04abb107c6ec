"""Writes the tables of README.md, README.zh-CN.md and docs/benchmarks.md, and the charts, from
benchmarks/results/*.json.

    python benchmarks/report.py           # rewrites them
    python benchmarks/report.py --check   # fails if they do not say what the results say
"""

import argparse
import glob
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
RESULTS = os.path.join(HERE, "results")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NAMES = {
    "torch": "PyTorch",
    "torch-compiled": "PyTorch, compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "tensorflow": "TensorFlow",
    "ftbert": "**ftbert**",
}


def load(pattern):
    found = {}
    for path in sorted(glob.glob(os.path.join(RESULTS, pattern + ".json"))):
        with open(path, encoding="utf-8") as file:
            found[os.path.splitext(os.path.basename(path))[0]] = json.load(file)
    return found


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def milliseconds(value):
    return "{:,.0f}".format(value) if value >= 100 else "%.1f" % value if value >= 10 else "%.2f" % value


def cpu_engines(result):
    """One record for each engine and precision: the best of its runs, which stand first and last for ftbert."""
    best = {}
    for record in result["engines"]:
        if "results" not in record:
            continue
        key = (record["precision"], record["engine"])
        if key not in best:
            best[key] = dict(record, results=dict(record["results"]))
            continue
        for name, figures in record["results"].items():
            if figures["milliseconds"] < best[key]["results"][name]["milliseconds"]:
                best[key]["results"][name] = figures
    return best


def cpu_table(result):
    engines = cpu_engines(result)
    order = {"fp32": 0, "bf16": 1, "int8": 2}
    names = list(next(iter(engines.values()))["results"])
    rows = []
    for (precision, engine), record in sorted(
        engines.items(), key=lambda item: (order[item[0][0]], item[1]["results"][names[-1]]["milliseconds"])
    ):
        cells = ["%s %s" % (NAMES.get(engine, engine), record["version"].split("-")[0]), precision]
        cells += [milliseconds(record["results"][name]["milliseconds"]) for name in names]
        against = record.get("against_torch_fp32")
        cells.append("%.2g" % against["largest_difference"] if against else "")
        rows.append(cells)
    return table(["engine", "precision"] + ["%s, ms" % name for name in names] + ["logits off by"], rows)


def ratios(result, precision):
    """Best peer over ftbert, for each piece of work."""
    engines = cpu_engines(result)
    ours = engines.get((precision, "ftbert"))
    if ours is None:
        return {}
    out = {}
    for name, figures in ours["results"].items():
        peers = {
            engine: record["results"][name]["milliseconds"]
            for (kind, engine), record in engines.items()
            if kind == precision and engine != "ftbert" and name in record["results"]
        }
        if peers:
            best = min(peers, key=lambda engine: peers[engine])
            out[name] = (peers[best] / figures["milliseconds"], best)
    return out


def describe(result):
    machine = result["machine"]
    processor = machine["processor"]
    if machine.get("family_model"):
        processor += " (family/model %s)" % machine["family_model"]
    return "%s, %d threads, revision %s" % (processor, result["threads"], result["revision"])


def gpu_table(result):
    """Rows of a GPU result: {"work": [...names], "engines": [{"engine", "precision", "milliseconds": {name: ms}}]}."""
    names = result["work"]
    rows = []
    for record in result["engines"]:
        cells = [NAMES.get(record["engine"], record["engine"]), record["precision"]]
        cells += [
            milliseconds(record["milliseconds"][name]) if name in record["milliseconds"] else "" for name in names
        ]
        rows.append(cells)
    return table(["engine", "precision"] + ["%s, ms" % name for name in names], rows)


def multi_table(result):
    """Rows of multi_gpu.py's result: one for each set of devices."""
    rows = []
    for record in result["sets"]:
        cells = [", ".join(record["devices"])]
        for work in ("token_ids", "strings"):
            cells += ["{:,.0f}".format(record[work]["texts_per_second"]), "%.2f" % record[work]["efficiency"]]
        cells.append("%.1f of %d" % (record["strings"]["processors_busy"], result["machine"]["usable_cores"]))
        used = list(record["card_mib"].values())
        cells.append("{:,.0f} MiB".format(max(used)) if used else "")
        rows.append(cells)
    header = ["devices", "texts/s, token ids", "of linear", "texts/s, strings", "of linear", "processors"]
    return table(header + ["a card's memory"], rows)


def multi_facts(result):
    """Sentences below the table: the host's bound, the order of rows, the simulated failure."""
    host = result["host"]
    text = (
        "The host alone, with engines that answer at once: {:,.0f} texts/s from token ids ({:.1f} such cards), "
        "{:,.0f} from strings ({:.1f}). Rows {} the caller's order."
    ).format(
        host["token_ids"]["texts_per_second"],
        host["token_ids"]["cards_fed"],
        host["strings"]["texts_per_second"],
        host["strings"]["cards_fed"],
        "were checked to stand in" if result["all_right"] else "DID NOT all stand in",
    )
    failure = result.get("failure")
    if failure:
        text += " A device made to fail half way was %s after %d right rows; the next call ran on the others." % (
            "reported" if failure["right"] else "NOT RIGHTLY REPORTED",
            failure["rows_delivered_before"],
        )
    return text


def noted(result):
    """What must be known of a result, in italics."""
    return ["*%s*" % result["note"]] if result.get("note") else []


def sections(language):
    """Markdown of all that there are results for."""
    chinese = language == "zh"
    parts = []
    for name, result in load("peers_cpu_*").items():
        title = (
            "CPU：%s。BERT-base，从 token id 到 logits，中位数。"
            if chinese
            else "CPU: %s. BERT-base, token ids to logits, median."
        )
        parts.append(title % describe(result) + "\n\n" + cpu_table(result))
        lines = []
        for precision in ("fp32", "bf16", "int8"):
            found = ratios(result, precision)
            if found:
                text = ", ".join("%s %.2fx (%s)" % (work, r, NAMES.get(e, e)) for work, (r, e) in found.items())
                line = "- %s 相对最快同类：%s" if chinese else "- %s against the fastest peer: %s"
                lines.append(line % (precision, text))
        parts.append("\n".join(lines))
        parts += noted(result)
    for name, result in load("peers_gpu_*").items():
        title = "GPU：%s。BERT-base，主机端 token id 到主机端 logits，中位数。" if chinese else (
            "GPU: %s. BERT-base, token ids on the host to logits on the host, median."
        )
        parts.append(title % result["card"] + "\n\n" + gpu_table(result))
        parts += noted(result)
    for name, result in load("multi_gpu_*").items():
        title = "多卡：%s。BERT-base %s，%s 条文本。" if chinese else "Several cards: %s. BERT-base %s, %s texts."
        values = (result["card"], result["precision"], "{:,}".format(result["texts"]))
        parts.append(title % values + "\n\n" + multi_table(result))
        parts.append(multi_facts(result))
        parts += noted(result)
        if os.path.exists(os.path.join(RESULTS, name + ".svg")):
            parts.append("![texts per second by number of cards](benchmarks/results/%s.svg)" % name)
    if os.path.exists(os.path.join(RESULTS, "growth.svg")):
        parts.append("![how cost grows](benchmarks/results/growth.svg)")
    return "\n\n".join(parts)


def replaced(path, text):
    with open(path, encoding="utf-8") as file:
        old = file.read()
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return old, "%s%s\n%s\n%s%s" % (head, BEGIN, text, END, tail)


def draw_growth(path):
    """Milliseconds against T for each precision, all axes logarithmic, and speed against threads at one T."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ftbert"
    from matplotlib import pyplot

    results = load("bench_predict_*")
    if not results:
        return
    figure, axes = pyplot.subplots(len(results), 2, figsize=(12, 4.5 * len(results)), squeeze=False)
    colors = {"fp32": "tab:blue", "bf16": "tab:orange", "int8": "tab:green"}
    for (by_tokens, by_threads), (name, result) in zip(axes, results.items()):
        speeds = {}
        for curve in result["growth"]:
            points = {point["tokens"]: point["milliseconds"] for point in curve["points"]}
            color = colors[curve["precision"]]
            if len(points) > 1:
                style = "-" if curve["threads"] > 1 else "--"
                label = "%s, %d thread%s" % (curve["precision"], curve["threads"], "s" * (curve["threads"] > 1))
                by_tokens.loglog(list(points), list(points.values()), style, color=color, marker=".", label=label)
            if 4096 in points:
                speeds.setdefault(curve["precision"], []).append((curve["threads"], 4096e3 / points[4096]))
        for precision, line in speeds.items():
            by_threads.plot(*zip(*line), color=colors[precision], marker="o", label=precision)
        by_tokens.set_xlabel("tokens in the batch")
        by_tokens.set_ylabel("milliseconds")
        by_tokens.set_title(name.replace("bench_predict_", "").replace("_", " "))
        by_threads.set_xlabel("threads")
        by_threads.set_ylabel("tokens a second, 32 rows of 128")
        by_threads.set_ylim(bottom=0)
        for axis in (by_tokens, by_threads):
            axis.grid(True, which="both", alpha=0.25)
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--charts", action="store_true", help="draw the charts too (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.charts:
        draw_growth(os.path.join(RESULTS, "growth.svg"))
        draw_multi()
    stale = []
    for path, language in (("README.md", "en"), ("README.zh-CN.md", "zh"), ("docs/benchmarks.md", "en")):
        path = os.path.join(ROOT, path)
        old, new = replaced(path, sections(language))
        if old == new:
            continue
        stale.append(os.path.basename(path))
        if not arguments.check:
            with open(path, "w", encoding="utf-8") as file:
                file.write(new)
    if arguments.check and stale:
        print("%s: not what benchmarks/results says. Run python benchmarks/report.py." % ", ".join(stale))
        return 1
    print("up to date" if not stale else "rewrote %s" % ", ".join(stale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
