"""What people would rather look at than read: a stage's curves.png, from its metrics.jsonl or report.json."""

from pathlib import Path
from typing import Any

from r1lite.observe import read_metrics

# One panel each: title, and the metrics it shows with the names they carry in it.
PANELS: list[tuple[str, dict[str, str]]] = [
    ("loss", {"loss": "loss"}),
    ("reward", {"reward": "mean reward", "pass_rate": "share of right completions"}),
    ("pass@1 on held-out problems", {"probe/pass@1": "pass@1"}),
    ("completion length, tokens", {
        "completions/mean_length": "all", "length/right": "right", "length/wrong": "wrong"
    }),
    ("reflective words a completion", {"reflective_words": "wait, check, ..."}),
]  # fmt: skip


def draw_training(stage: Path, title: str) -> None:
    """curves.png of a training stage; panels without numbers are left out, and so is a loss beside a reward."""
    rows = read_metrics(stage / "metrics.jsonl")
    series = {
        key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for _, keys in PANELS for key in keys
    }
    panels = [(name, keys) for name, keys in PANELS if any(series[key] for key in keys)]
    if series["reward"]:  # GRPO's loss starts at zero whatever is learned, so it only confuses
        panels = [panel for panel in panels if panel[0] != "loss"]
    figure, axes = new_figure(len(panels))
    for axis, (name, keys) in zip(axes, panels, strict=False):
        for key, label in keys.items():
            if series[key]:
                axis.plot(
                    *zip(*series[key], strict=True), label=label, marker="o" if len(series[key]) < 25 else None, ms=3
                )
        axis.set(title=name, xlabel="step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(frameon=False)
    save(figure, title, stage)


def draw_pass_at_k(stage: Path, results: list[dict[str, Any]]) -> None:
    """curves.png of an evaluation: pass@k of every model with its 95 % interval, on one plot a set of problems."""
    names = list(dict.fromkeys(result["problems"] for result in results))
    figure, axes = new_figure(len(names))
    for axis, name in zip(axes, names, strict=False):
        for result in (result for result in results if result["problems"] == name):
            ks = [int(k) for k in result["pass@k"]]
            values = list(result["pass@k"].values())
            (line,) = axis.plot(ks, [value["mean"] for value in values], marker="o", ms=4, label=result["model"])
            bounds = [value["low"] for value in values], [value["high"] for value in values]
            axis.fill_between(ks, *bounds, color=line.get_color(), alpha=0.2, lw=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.set(title=name, xlabel="k", ylabel="pass@k", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right")
    save(figure, "pass@k", stage)


def new_figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(panels, 2)
    lines = -(-panels // 2)
    figure = Figure(figsize=(5.2 * columns, 3.4 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes


def save(figure: Any, title: str, stage: Path) -> None:
    figure.suptitle(title)
    figure.savefig(stage / "curves.png", dpi=110)
