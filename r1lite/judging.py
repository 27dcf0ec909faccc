"""What both graders say of completions, which answer each gives, and which of those answers are the same."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1lite.metrics import Votes
from r1lite.models import locate
from r1lite.prompts import final_answer
from r1lite.rubric import Asked, load_reward, score
from r1lite.stages.config import Reward
from rewards.answers import LONGEST, clean
from rewards.choice import letters
from rewards.math import compare

ACCURACY = Reward(use="rewards.math:accuracy")
CHOICE = Reward(use="rewards.choice:choice")
SECOND = Reward(use="rewards.exact:exact")  # shares nothing with the others but where the answer stands
Row = dict[str, Any]


class Judge:
    """Grades by a reward, which decides, and by a second grader, which needs golds and shows where the first may be
    wrong. `measures` are rewards that decide nothing.

    `counts` sums what the graders have logged, such as timeouts.
    """

    def __init__(
        self,
        reward: Reward,
        resolve: Callable[[str], Path | None] = locate,
        has_golds: bool = True,
        measures: Sequence[Reward] = (),
    ) -> None:
        self.reward = reward
        self.graders = {reward.name: load_reward(reward, resolve)}
        if has_golds:
            self.graders.setdefault(SECOND.name, load_reward(SECOND))
        self.names = list(self.graders)
        self.measures = {measure.name: load_reward(measure, resolve) for measure in measures}
        self.read = chosen if reward.use == CHOICE.use else final_answer
        self.counts: Counter[str] = Counter()

    def __call__(self, asked: list[Asked], texts: list[str], ids: list[list[int]] | None = None) -> list[Row]:
        """For each completion `found`, the answer that it gives, and `reward/NAME`, each grader's score."""
        scores: dict[str, Sequence[float | None]] = {name: self.scores(name, asked, texts, ids) for name in self.names}
        for name, measure in self.measures.items():
            scores[name], logged = score(measure, asked, texts, ids)
            self.counts.update(logged)
        found = [self.read(each.prefill + text) for each, text in zip(asked, texts, strict=True)]
        return [
            {"found": answer or None, **{f"reward/{name}": values[index] for name, values in scores.items()}}
            for index, answer in enumerate(found)
        ]

    def scores(
        self, name: str, asked: list[Asked], texts: list[str], ids: list[list[int]] | None = None
    ) -> list[float]:
        """Scores by one grader; no score is none at all."""
        scores, logged = score(self.graders[name], asked, texts, ids)
        self.counts.update(logged)
        return [value or 0.0 for value in scores]


def chosen(text: str) -> str | None:
    """The letter of a multiple choice; what was answered instead, where it names none or several."""
    answer = final_answer(text)
    named = letters(answer or "")
    return named.pop() if len(named) == 1 else answer


def vote(problems: list[list[Row]], right_by: str) -> list[Votes]:
    """Count each problem's votes, and number them in its rows as `vote`: 0 is the right answer, None is no answer."""
    wrong = [[row for row in rows if not is_right(row, right_by) and row["found"] is not None] for rows in problems]
    groups = group_equal([sorted({clean(row["found"]) for row in rows}) for rows in wrong])
    counted = []
    for rows, mine in zip(problems, groups, strict=True):
        for row in rows:
            answered = row["found"] is not None
            row["vote"] = 0 if is_right(row, right_by) else mine[clean(row["found"])] if answered else None
        sizes = Counter(row["vote"] for row in rows)
        right, silent = sizes.pop(0, 0), sizes.pop(None, 0)
        counted.append(Votes(right, tuple(sorted(sizes.values())), silent))
    return counted


def is_right(row: Row, right_by: str) -> bool:
    return bool(row[f"reward/{right_by}"] >= 1)


def group_equal(answers: list[list[str]]) -> list[dict[str, int]]:
    """For each problem's different answers the number, from 1 on, of the group of equal ones that each belongs to.

    An answer joins the first group whose first member it equals as mathematics. All problems take their next answer
    together, so that the pool of graders has enough to do.
    """
    groups: list[dict[str, int]] = [{} for _ in answers]
    first: list[list[str]] = [[] for _ in answers]  # each group's first member
    for turn in range(max(map(len, answers), default=0)):
        taken = [(index, mine[turn]) for index, mine in enumerate(answers) if turn < len(mine)]
        pairs = {
            pair: None
            for index, answer in taken
            for member in first[index]
            if max(len(member), len(answer)) <= LONGEST
            for pair in ((member, answer), (answer, member))  # a decimal may stand for a fraction, not the reverse
        }
        same = {frozenset(pair) for pair, verdict in compare(list(pairs)).items() if verdict is True}
        for index, answer in taken:
            equal = [n for n, member in enumerate(first[index], 1) if {member, answer} in same]
            if not equal:
                first[index].append(answer)
            groups[index][answer] = equal[0] if equal else len(first[index])
    return groups
