"""The charts of benchmarks/results, drawn by report.py --charts."""

from report_tables import load, results_path


def draw_growth():
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
    figure.savefig(results_path("growth.svg"), metadata={"Date": None})


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
        figure.savefig(results_path(name + ".svg"), metadata={"Date": None})
        pyplot.close(figure)
