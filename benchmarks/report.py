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

# What the READMEs show of the CPU's and the GPU's engines; docs/benchmarks.md shows all.
README_SHOWS = (
    "peers_cpu_zen3_2_threads_strassen",
    "peers_cpu_zen5_2_threads",
    "peers_cpu_zen5_avx2",
    "peers_gpu_nvidia_h100_80gb_hbm3",
)

# Milliseconds at most on one H100, fp16 and fp8.
GPU_TARGETS = {
    "1 x 32": (0.26, 0.25),
    "1 x 128": (0.30, 0.28),
    "8 x 128": (0.52, 0.48),
    "32 x 128": (1.45, 1.25),
    "256 x 128": (10.7, 7.8),
    "500 x 32": (5.3, 4.0),
    "32 x 384": (4.4, 3.2),
    "large 32 x 384": (14.5, 10),
    "4096 texts": (62, 45),
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
        engine = "ftbert" if record["engine"].startswith("ftbert") else record["engine"]  # whichever its runtime
        record = dict(record, engine=engine)
        key = (record["precision"], engine)
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


def against(found, chinese):
    """`{work: (ratio, peer)}` in words; a peer that is the fastest at all of it is named once."""
    peers = {NAMES.get(peer, peer).split(",")[0] for _, peer in found.values()}
    if len(peers) == 1:
        text = ", ".join("%s %.2fx" % (work, ratio) for work, (ratio, _) in found.items())
        return ("最快同类 %s：%s" if chinese else "the fastest peer, %s: %s") % (peers.pop(), text)
    text = ", ".join("%s %.2fx (%s)" % (w, r, NAMES.get(peer, peer).split(",")[0]) for w, (r, peer) in found.items())
    return ("最快同类：%s" if chinese else "the fastest peer: %s") % text


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
        if not record["milliseconds"]:
            continue
        cells = [NAMES.get(record["engine"], record["engine"]), record["precision"]]
        cells += [
            milliseconds(record["milliseconds"][name]) if name in record["milliseconds"] else "" for name in names
        ]
        off = record.get("logits_off_by")
        cells.append("%.2g" % max(off.values()) if off else "")
        rows.append(cells)
    return table(["engine", "precision"] + ["%s, ms" % name for name in names] + ["logits off by"], rows)


def gpu_ratios(result, language):
    """A line for each precision of ours, untuned: the fastest peer's time over its own, for each piece of work."""
    peers = [record for record in result["engines"] if not record["engine"].startswith("ftbert")]
    lines = []
    for record in result["engines"]:
        if record["engine"] != "ftbert":
            continue
        found = {}
        for name in result["work"]:
            theirs = [(peer["milliseconds"][name], peer["engine"]) for peer in peers if name in peer["milliseconds"]]
            if theirs and name in record["milliseconds"]:
                best, engine = min(theirs)
                found[name] = (best / record["milliseconds"][name], engine)
        if found:
            line = "- %s 相对 fp16 的%s" if language == "zh" else "- %s against fp16 of %s"
            lines.append(line % (record["precision"], against(found, language == "zh")))
    return "\n".join(lines)


def gpu_targets(result):
    """Rows: what an H100 is to reach, what ours did (the better of untuned and tuned), and by how much it missed."""
    rows = []
    for name, targets in GPU_TARGETS.items():
        cells = [name]
        for precision, target in zip(("fp16", "fp8"), targets):
            times = [
                record["milliseconds"][name]
                for record in result["engines"]
                if record["engine"].startswith("ftbert")
                and record["precision"] == precision
                and name in record["milliseconds"]
            ]
            found = min(times) if times else None
            verdict = "" if found is None else "met" if found <= target else "+%.0f%%" % (100 * (found / target - 1))
            cells += ["%g" % target, milliseconds(found) if times else "", verdict]
        rows.append(cells)
    return table(["work", "fp16 at most, ms", "ftbert", "", "fp8 at most, ms", "ftbert", ""], rows)


def path_facts(result):
    """Sentences of predict_paths.py's result: one for each runtime."""
    lines = []
    for runtime, record in result["runtimes"].items():
        many, one = record["throughput"], record["latency"]["1 x 128"]
        name = "TensorFlow %s's session" % record["tensorflow"] if "tensorflow" in record else '`runtime="direct"`'
        lines.append(
            "- {}, {}: {:,} texts as strings at {:,} texts/s, {:.2f} of the engine's {:,} from token ids; one text of "
            "128 tokens {:.3f} ms in the engine, {:.0f} us more by the runtime, {:.0f} us more from a string.".format(
                name, record["engine"], many["texts"], many["texts_per_second"]["strings"], many["strings_to_engine"],
                many["texts_per_second"]["engine"], one["engine"], one["predict_ids_adds_us"], one["predict_adds_us"],
            )
        )  # fmt: skip
    return "\n".join(lines)


def accuracy_table(result):
    """Rows of accuracy.py's result."""
    rows = []
    for record in result["precisions"]:
        if record["engine"]:
            below = "%.2f" % record["points_below_fp32"] + (
                " (at most %.1f)" % record["allowed_points"] if "allowed_points" in record else ""
            )
            agreement = "%.2f%%" % (100 * record["agreement_with_fp32"])
            rows.append([record["precision"], "%.2f%%" % (100 * record["accuracy"]), below, agreement])
    return table(["precision", "test accuracy", "points below fp32", "same answer as fp32"], rows)


def soak_facts(result):
    """A sentence of soak_gpu.py's result."""
    growth = result["growth_after_the_first_fifth"]
    return (
        "{:.0f} s of eight threads on {}: {:,} calls, {:,} rows, {} wrong; logits within {:.2g} of the row alone; "
        "growth after the first fifth: {} MiB on the card, {} MiB in the process.{}"
    ).format(
        result["seconds"], result["engine"], result["calls"], result["texts"], len(result["wrong_rows"]) or "none",
        result["largest_difference"], growth.get("device_mib", "?"), growth["resident_mib"],
        " It ended with: %s" % result["errors"][0] if result["errors"] else "",
    )  # fmt: skip


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


def held_line(result, chinese):
    """One line for each precision of a run in which ftbert and ONNX Runtime were both held to an instruction set."""
    engines = cpu_engines(result)
    lines = []
    for precision in ("fp32", "int8"):
        ours, theirs = (engines.get((precision, engine)) for engine in ("ftbert", "onnxruntime"))
        if not ours or not theirs:
            continue
        speeds = ", ".join("%s %.2fx" % (work, ratio) for work, (ratio, _) in ratios(result, precision).items())
        against = [record.get("against_torch_fp32", {}) for record in (ours, theirs)]
        off = [record.get("largest_difference", float("nan")) for record in against]
        if chinese:
            text = "- 两者都限制在 %s 时，%s 相对 ONNX Runtime：%s；logits 偏差 %.2g 对 %.2g"
        else:
            text = "- both held to %s, %s against ONNX Runtime: %s; logits off by %.2g against %.2g"
        lines.append(text % (result["isa"].upper(), precision, speeds, off[0], off[1]))
    return "\n".join(lines)


def predict_facts(result):
    """Loading, memory, and strings against ids of one run of bench_predict.py."""
    rows = []
    for record in result["loading"]:
        strings = result["strings"][record["precision"]][record["runtime"]]
        rows.append(
            [
                "%s, %s" % (record["runtime"], record["precision"]),
                "%.2f" % record["first_prediction_s"],
                "%.0f" % record["peak_above_mb"],
                "%.3f" % strings["strings_over_ids"],
            ]
        )
    header = ["runtime", "fp16 checkpoint to first prediction, s", "peak above the import, MB", "strings over ids"]
    return table(header, rows)


def sections(language, whole=False):
    """Markdown of all that there are results for; `whole` adds what only docs/benchmarks.md shows."""
    chinese = language == "zh"
    parts = []
    shown = {name: result for name, result in load("peers_cpu_*").items() if whole or name in README_SHOWS}
    for name, result in shown.items():
        if result.get("isa"):
            parts.append(held_line(result, chinese))
            parts += noted(result)
            continue
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
                lines.append(("- %s 相对%s" if chinese else "- %s against %s") % (precision, against(found, chinese)))
        parts.append("\n".join(lines))
        parts += noted(result)
    shown = {name: result for name, result in load("peers_gpu_*").items() if whole or name in README_SHOWS}
    for name, result in shown.items():
        title = (
            "GPU：%s。BERT-base，主机端 token id 到主机端 logits，中位数。"
            if chinese
            else ("GPU: %s. BERT-base, token ids on the host to logits on the host, median.")
        )
        parts.append(title % result["card"] + "\n\n" + gpu_table(result))
        ratios_of_peers = gpu_ratios(result, language)
        parts += [ratios_of_peers] if ratios_of_peers else []
        parts += ["Against the targets, untuned or tuned:\n\n" + gpu_targets(result)] if whole else []
        parts += noted(result)
    if whole:
        for name, result in load("predict_*").items():
            parts += [path_facts(result)] + noted(result)
        for name, result in load("accuracy_*").items():
            title = "Accuracy on {}, {:,} test texts. {}".format(result["data"], result["texts"], result["what"])
            parts += [title + "\n\n" + accuracy_table(result)] + noted(result)
        for name, result in load("soak_*").items():
            parts += [soak_facts(result)] + noted(result)
    for name, result in load("multi_gpu_*").items():
        if not whole and max(row["cards"] for row in result["sets"]) < 2:
            continue  # one card listed twice shows no scaling
        title = "多卡：%s。BERT-base %s，%s 条文本。" if chinese else "Several cards: %s. BERT-base %s, %s texts."
        values = (result["card"], result["precision"], "{:,}".format(result["texts"]))
        parts.append(title % values + "\n\n" + multi_table(result))
        parts.append(multi_facts(result))
        parts += noted(result)
        if os.path.exists(os.path.join(RESULTS, name + ".svg")):
            parts.append("![texts per second by number of cards](benchmarks/results/%s.svg)" % name)
    if whole:
        parts += [predict_facts(result) for result in load("bench_predict_*").values()]
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
        by_threads.set_xticks(sorted({curve["threads"] for curve in result["growth"]}))
        for axis in (by_tokens, by_threads):
            axis.grid(True, which="both", alpha=0.25)
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_multi():
    """Texts per second against the number of devices, beside the straight line and the host's own bound."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ftbert"
    from matplotlib import pyplot

    for name, result in load("multi_gpu_*").items():
        figure, axis = pyplot.subplots(figsize=(6.5, 4.5))
        counts = [len(record["devices"]) for record in result["sets"]]
        cards = [record["cards"] for record in result["sets"]]
        for work, label in (("token_ids", "token ids"), ("strings", "strings")):
            rates = [record[work]["texts_per_second"] for record in result["sets"]]
            (line,) = axis.plot(counts, rates, marker="o", label=label)
            bound = result["host"][work]["texts_per_second"]
            if bound < 3 * max(rates):
                axis.axhline(bound, color=line.get_color(), linestyle=":", label="the host alone, %s" % label)
        one = result["sets"][0]["token_ids"]["texts_per_second"]
        axis.plot(counts, [one * count for count in cards], color="grey", linestyle="--", label="linear")
        axis.set_xticks(counts)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("devices listed")
        axis.set_ylabel("texts per second")
        axis.set_title("%s, BERT-base %s" % (result["card"], result["precision"]))
        axis.grid(True, alpha=0.25)
        axis.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(os.path.join(RESULTS, name + ".svg"), metadata={"Date": None})
        pyplot.close(figure)


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
        whole = path.endswith("benchmarks.md")
        text = sections(language, whole)
        old, new = replaced(path, text.replace("](benchmarks/", "](../benchmarks/") if whole else text)
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
