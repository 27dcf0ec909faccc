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


def draw_evaluation(stage: Path, results: list[dict[str, Any]]) -> None:
    """curves.png of an evaluation: for each set of problems every model's pass@k and maj@k with their 95 % intervals
    over problems, and beside it what the same samples would have scored with fewer tokens."""
    names = list(dict.fromkeys(result["problems"] for result in results))
    budgets_known = "pass@1_by_budget" in results[0]
    figure, axes = new_figure(len(names) * (1 + budgets_known))
    for name in names:
        mine = [result for result in results if result["problems"] == name]
        draw_by_k(axes.pop(0), name, mine)
        if budgets_known:
            draw_by_budget(axes.pop(0), name, mine)
    save(figure, "evaluation", stage)


def draw_by_k(axis: Any, name: str, results: list[dict[str, Any]]) -> None:
    for result in results:
        (line,) = draw_estimates(axis, result["pass@k"], label=short(result["model"]), marker="o")
        draw_estimates(axis, result["maj@k"], label=None, marker="s", ls="--", color=line.get_color())
    ks = [int(k) for k in results[0]["pass@k"]]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set(title=short(name), xlabel="k", ylabel="pass@k (line), maj@k (dashed)", ylim=(0, 1.02))
    axis.legend(frameon=False, loc="best")
    axis.grid(alpha=0.3)


def draw_by_budget(axis: Any, name: str, results: list[dict[str, Any]]) -> None:
    for result in results:
        shares = result["pass@1_by_budget"]
        axis.plot(
            [int(budget) for budget in shares], list(shares.values()), marker="o", ms=4, label=short(result["model"])
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(title=short(name), xlabel="token budget", ylabel="pass@1 of the samples cut off there", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def short(name: str) -> str:
    """A long name's end, which tells more than its beginning."""
    return name if len(name) <= 40 else "..." + name[-37:]


def draw_estimates(axis: Any, estimates: dict[str, Any], **style: Any) -> Any:
    ks = [int(k) for k in estimates]
    lines = axis.plot(ks, [each["mean"] for each in estimates.values()], ms=4, **style)
    low, high = zip(*(each["ci_problems"] for each in estimates.values()), strict=True)
    axis.fill_between(ks, low, high, color=lines[0].get_color(), alpha=0.12, lw=0)
    return lines


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


def draw_funnel(stage: Path, report: dict[str, Any]) -> None:
    """curves.png of a selection: how many rollouts each filter left, and how often problems were solved, where that is
    known."""
    figure, (axis, *others) = new_figure(1 + bool(report["pass_rates"]))
    left = {"rollouts": report["rows"], **{each["reason"]: each["left"] for each in report["funnel"]}}
    bars = axis.barh(list(left), list(left.values()))
    dropped = ["", *(f" (-{each['dropped']:,})" for each in report["funnel"])]
    axis.bar_label(bars, [f"{count:,}{less}" for count, less in zip(left.values(), dropped, strict=True)], padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.set(title="left after each filter", xticks=[])
    if others:
        axis = others[0]
        axis.bar([float(low) for low in report["pass_rates"]], list(report["pass_rates"].values()), width=0.09)
        axis.set(title="problems by pass rate", xlabel="share of right rollouts, in tenths", ylabel="problems")
    save(figure, f"{report['kept']:,} of {report['rows']:,} rollouts kept", stage)
