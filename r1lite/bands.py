"""Published figures at the same protocol: is a result where others have found it?"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from r1lite.stages.config import Strict
from r1lite.strict_yaml import load_yaml

REFERENCES = Path("data/references.yaml")


class Published(Strict):
    """Figures by who published them; a result inside `band` agrees with them. All are shares in [0, 1]."""

    model: str
    problems: str
    metric: str = Field(pattern=r"^(pass|maj)@[1-9]\d*$")
    protocol: dict[str, Any]
    published: dict[str, float]
    band: tuple[float, float]

    @model_validator(mode="after")
    def in_order(self) -> "Published":
        if not 0 <= self.band[0] <= self.band[1] <= 1:
            raise ValueError(f"the band {list(self.band)} must go from a lower to a higher share in [0, 1]")
        return self


class Held(Strict):
    """A result held against what is published for it."""

    model: str
    problems: str
    metric: str
    value: float
    band: tuple[float, float]
    published: dict[str, float]
    verdict: Literal["inside", "outside"]


def load_published(path: Path = REFERENCES) -> list[Published]:
    """Raises ValueError for a file that is not as it should be."""
    try:
        return TypeAdapter(list[Published]).validate_python(load_yaml(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from None


def held_against(report: dict[str, Any], path: Path = REFERENCES) -> list[Held]:
    """Every published figure for a model and problems of this report, where the decoding was the same as theirs and no
    problem was left out."""
    if not path.exists() or report["protocol"].get("limit") is not None:
        return []
    found = []
    for entry in load_published(path):
        for result in report["results"]:
            named = (result["model"], result["problems"].partition("@")[0])
            alike = entry.protocol.items() <= report["protocol"].items()
            value = metric_of(result, entry.metric)
            if named == (entry.model, entry.problems) and alike and value is not None:
                low, high = entry.band
                verdict: Literal["inside", "outside"] = "inside" if low <= value <= high else "outside"
                found.append(
                    Held(
                        model=result["model"],
                        problems=result["problems"],
                        metric=entry.metric,
                        value=value,
                        band=entry.band,
                        published=entry.published,
                        verdict=verdict,
                    )
                )
    return found


def metric_of(result: dict[str, Any], metric: str) -> float | None:
    """pass@1 or maj@64, as the result has it; None where it was not sampled that often."""
    kind, _, k = metric.partition("@")
    estimate = result[f"{kind}@k"].get(k)
    return None if estimate is None else float(estimate["mean"])
