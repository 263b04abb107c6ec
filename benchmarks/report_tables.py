"""The tables and sentences that report.py puts together: each of one file of benchmarks/results."""

import glob
import json
import os

from common import RESULTS

NAMES = {
    "torch": "PyTorch",
    "torch-compiled": "PyTorch, compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "tensorflow": "TensorFlow",
    "ftbert": "**ftbert**",
}
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


def results_path(name):
    return os.path.join(RESULTS, name)


def load(pattern):
    found = {}
    for path in sorted(glob.glob(results_path(pattern + ".json"))):
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
