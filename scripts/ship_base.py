"""Make data/tiny_base and data/tiny_student from the newest run of recipes/tiny/base.yaml: weights, and a card each.

python scripts/ship_base.py [--runs runs]
"""

import argparse
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from r1lite.artifacts import Artifact, read_json
from r1lite.plugins import load_module
from r1lite.records import read_rows

CARD = """---
key: {key}
pass@1: {pass_at_1:.4f}
pass@16: {pass_at_16:.4f}
mean_length: {mean_length:.2f}
---
# {name}

{role} of the tiny world: {parameters:,} parameters (Qwen3 shape, {layers} layers of {width}), one token
a symbol, pre-trained from scratch in {minutes:.0f} minutes on {device} on {documents:,} documents
of [`data/chain.py`](../chain.py) and [`data/courtesy.py`](../courtesy.py).

```sh
make base                      # recipes/tiny/base.yaml, stage `{stage}` with the key {key}
python scripts/ship_base.py    # copies the model here and writes this card
```

Measured on the {n_problems} held-out problems of `data/chain.yaml#test`, {n_samples} samples each, temperature 1,
top-p 1: pass@1 {pass_at_1:.3f}, pass@16 {pass_at_16:.3f}, mean length {mean_length:.1f} tokens.

| tries before the answer | share | pass@1 |
|---|---|---|
{table}

It answers at once half of the time, which is a guess among six digits. When it tries, it mostly answers the first digit
that it tried, fitting or not. It knows how to search until a digit fits, and seldom does: that is what RL amplifies.
Of the documents that think, two fifths speak English, one fifth Chinese, and two fifths mix both within one thought.
"""
ROLES = {"base": "The base model", "student": "The student base"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ship the models of the newest run of recipes/tiny/base.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    latest = parser.parse_args().runs / "base" / "latest"
    report = Artifact(latest / "report")
    results = {result["model"]: result for result in read_json(report.path / "report.json")["results"]}
    for stage in ROLES:
        rows = [row for part in report.path.glob(f"samples/{stage}-*.parquet") for row in read_rows(part)]
        ship(Artifact(latest / stage), results[f"${stage}"], rows)


def ship(base: Artifact, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    stage, manifest, config = base.spec.stage, base.manifest(), base.spec.config
    target = Path(f"data/tiny_{stage}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base.model, target)
    card = CARD.format(
        key=base.spec.key,
        name=target.name,
        stage=stage,
        role=ROLES[stage],
        layers=config["model"]["num_hidden_layers"],
        width=config["model"]["hidden_size"],
        parameters=manifest["result"]["parameters"],
        minutes=manifest["seconds"] / 60,
        device=manifest["device"],
        documents=config["documents"],
        n_problems=result["n_problems"],
        n_samples=result["n_samples"],
        pass_at_1=result["pass@1"],
        pass_at_16=result["pass@k"]["16"]["mean"],
        mean_length=result["mean_tokens"],
        table="\n".join(by_tries(rows)),
    )
    (target / "README.md").write_text(card)
    print(card)


def by_tries(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the card's table: how often, and how well, with 0, 1, ... tries."""
    tries = load_module("data/chain.py").tries
    groups: dict[str, list[float]] = {"none": [], "one": [], "several": []}
    for row in rows:
        count = tries(row["completion"])
        groups["none" if count == 0 else "one" if count == 1 else "several"].append(row["reward/accuracy"])
    return [
        f"| {name} | {len(right) / len(rows):.3f} | {fmean(right):.3f} |" for name, right in groups.items() if right
    ]


if __name__ == "__main__":
    main()
