"""Writes the tables of README.md, README.zh-CN.md and docs/benchmarks.md, and the charts, from
benchmarks/results/*.json.

    python benchmarks/report.py           # rewrites them
    python benchmarks/report.py --check   # fails if they do not say what the results say
"""

import argparse
import os
import sys

from report_charts import draw_growth, draw_multi
from report_tables import (
    accuracy_table,
    against,
    cpu_table,
    describe,
    gpu_ratios,
    gpu_table,
    gpu_targets,
    held_line,
    load,
    multi_facts,
    multi_table,
    noted,
    path_facts,
    predict_facts,
    ratios,
    results_path,
    soak_facts,
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# What the READMEs show of the CPU's and the GPU's engines; docs/benchmarks.md shows all.
README_SHOWS = (
    "peers_cpu_zen3_2_threads_strassen",
    "peers_cpu_zen5_2_threads",
    "peers_cpu_zen5_avx2",
    "peers_cpu_emerald_rapids_2_threads",
    "peers_cpu_sapphire_rapids_fp32_16_threads",
    "peers_gpu_nvidia_h100_80gb_hbm3",
    "peers_gpu_nvidia_h200_uniform",
)


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
        if os.path.exists(results_path(name + ".svg")):
            parts.append("![texts per second by number of cards](benchmarks/results/%s.svg)" % name)
    if whole:
        parts += [predict_facts(result) for result in load("bench_predict_*").values()]
    if os.path.exists(results_path("growth.svg")):
        parts.append("![how cost grows](benchmarks/results/growth.svg)")
    return "\n\n".join(parts)


def replaced(path, text):
    with open(path, encoding="utf-8") as file:
        old = file.read()
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return old, "%s%s\n%s\n%s%s" % (head, BEGIN, text, END, tail)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--charts", action="store_true", help="draw the charts too (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.charts:
        draw_growth()
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
