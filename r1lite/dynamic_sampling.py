"""DAPO's dynamic sampling (arXiv 2503.14476, §3.2): groups without signal give way to groups of other problems.

A group whose completions all have the same reward moves no weight. It is replaced, round by round, until each has
signal or the rounds are used up; then groups without signal fill the batch, whose size never changes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

from r1lite.engines import Completion
from r1lite.rubric import SET


@dataclass(frozen=True)
class Group:
    """A problem's row as the trainer has it, its completions and their texts, and their scores by each reward:
    (rewards, G)."""

    row: dict[str, Any]
    completions: list[Completion]
    texts: list[str]
    scores: list[list[float | None]]
    seed: int

    def has_signal(self, weights: list[float]) -> bool:
        """Whether some completions have more reward in total than others; those without any score do not count."""
        totals = [
            sum(weight * (score or 0.0) for weight, score in zip(weights, scores, strict=True))
            for scores in zip(*self.scores, strict=True)
            if any(score is not None for score in scores)
        ]
        return bool(totals) and max(totals) - min(totals) > 1e-8


@dataclass(frozen=True)
class Draw:
    """What dynamic sampling comes to: `chosen` groups fill the batch, `left_out` ones were sampled for nothing."""

    chosen: list[Group]
    left_out: list[Group]
    rounds: int


def draw(
    rows: list[dict[str, Any]],
    sample: Callable[[list[dict[str, Any]], int], list[Group]],
    substitutes: dict[str, Iterator[dict[str, Any]]],
    weights: list[float],
    most_rounds: int,
) -> Draw:
    """Sample a group for each of `rows`, and replace those without signal, of each problem set as many as it has.

    `sample(rows, round)` makes groups. So many substitutes are asked that, at the rate seen so far, one round would do.
    """
    wanted = Counter(row[SET] for row in rows)
    groups: list[Group] = []
    for done in range(most_rounds + 1):
        groups += sample(rows, done)
        found = Counter(group.row[SET] for group in groups if group.has_signal(weights))
        asked = Counter(group.row[SET] for group in groups)
        rows = [
            row
            for name, missing in (wanted - found).items()
            for row in islice(substitutes[name], min(wanted[name], ceil(missing * asked[name] / max(1, found[name]))))
        ]
        if not rows:
            break
    by_set = defaultdict(list)
    for group in sorted(groups, key=lambda group: not group.has_signal(weights)):
        by_set[group.row[SET]].append(group)
    return Draw(
        [group for name, mine in by_set.items() for group in mine[: wanted[name]]],
        [group for name, mine in by_set.items() for group in mine[wanted[name] :]],
        done,
    )


def places_by_set(dataset: Any) -> dict[str, dict[str, int]]:
    """Where each problem stands in a dataset, by problem set; one that is there twice counts where it comes first."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    seen = set()
    for place, (name, problem) in enumerate(zip(dataset[SET], dataset["problem_id"], strict=True)):
        if problem not in seen:
            found[name][problem] = place
            seen.add(problem)
    return found


def substitutes_for(
    asked: set[str], dataset: Any, places: dict[str, dict[str, int]], key: str, rank: int, ranks: int
) -> dict[str, Iterator[dict[str, Any]]]:
    """By problem set, rows of `dataset` that were not `asked`, in an order that follows from `key` and is made when the
    first one is wanted. No two ranks get the same."""

    def of(name: str) -> Iterator[dict[str, Any]]:
        mine = list(places[name].items())
        random.Random(f"substitutes/{key}/{name}").shuffle(mine)
        unasked = (place for problem, place in mine if problem not in asked)
        for place in islice(unasked, rank, None, ranks):
            yield dataset[place]

    return {name: of(name) for name in places}
