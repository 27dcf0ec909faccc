"""The tiny recipe's learning curve with packed rows and with TRL's padded passes, for some seeds.

python bench/curves.py [--seeds 0 1 2]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import yaml

from r1lite.observe import read_metrics

RECIPE = Path("recipes/tiny/zero.yaml")
SIDES = {"packed": False, "padded": True}


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves with packed and with padded rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    curves = {side: [curve(seed, stock) for seed in seeds] for side, stock in SIDES.items()}
    print("held-out pass@1 by step")
    steps = list(curves["packed"][0])
    print(f"{'':16}" + "".join(f"{step:8}" for step in steps))
    for side, mine in curves.items():
        for seed, found in zip(seeds, mine, strict=True):
            print(f"{side + f', seed {seed}':16}" + "".join(f"{found[step]:8.3f}" for step in steps))
    for side, mine in curves.items():
        print(f"{side + ', mean':16}" + "".join(f"{fmean(found[step] for found in mine):8.3f}" for step in steps))


def curve(seed: int, stock: bool) -> dict[int, float]:
    """The probe's results by step of a run of the recipe's first stage."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["seed"] = seed
    recipe["stages"] = {"zero": {**recipe["stages"]["zero"], "stock": stock}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "zero.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        command = [sys.executable, "-m", "r1lite.cli", "run", str(file), "--runs", folder]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (metrics,) = Path(folder).rglob("metrics.jsonl")
        rows = read_metrics(metrics)
    found = {row["step"]: row["probe/pass@1"] for row in rows if "probe/pass@1" in row}
    print(f"seed {seed}, {'padded' if stock else 'packed'}: {list(found.values())[-1]:.3f}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
