"""What the stages' configs have in common: the fields of every stage, and the types of what they refer to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from r1lite.prompts import TEMPLATES


@dataclass(frozen=True)
class Reference:
    """Marks a config field that names something outside the recipe: "model", "reward_model", "problems", "examples",
    "rollouts" or "function"."""

    to: str


ModelReference = Annotated[str, Reference("model")]  # $stage, a directory, or a hub id
RewardModelReference = Annotated[str, Reference("reward_model")]  # likewise
ProblemsReference = Annotated[str, Reference("problems")]  # $stage, card.yaml#split, .jsonl, .parquet
FunctionReference = Annotated[str, Reference("function")]  # module:function or path.py:function
ExamplesReference = Annotated[str, Reference("examples")]  # $stage, or problems with a `completion` each
RolloutsReference = Annotated[str, Reference("rollouts")]  # $stage, a .jsonl or a .parquet file
EngineName = Literal["auto", "vllm", "transformers"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(Strict):
    """`seed` and `prompt` of a stage are the recipe's unless the stage says otherwise.

    `PRODUCES` is what other stages may refer to it as, in the words of `Reference`.
    """

    PRODUCES: ClassVar[tuple[str, ...]]
    OUTSIDE_KEY: ClassVar[dict[str, Any]] = {}  # what decides how, and not what; in the words of pydantic's `exclude`

    kind: str
    seed: int = 0
    prompt: Literal[*TEMPLATES] = "r1_zero"  # type: ignore[valid-type]

    def faults(self) -> Iterator[str]:
        """What the types cannot say, each as `field: what is wrong and what to do`."""
        yield from ()


class Part(Strict):
    """A set of problems, and its share of what is asked; where no part says its share, all have the same."""

    use: ProblemsReference = Field(description="problems, such as data/chain.yaml#train")
    share: float = Field(1.0, gt=0)


def parts_of(value: Any) -> Any:
    """A reference alone is the only part."""
    return [{"use": value}] if isinstance(value, str) else value


Mixture = Annotated[list[Part], BeforeValidator(parts_of), Field(min_length=1)]


class Reward(Strict):
    """A reward function by name, called with `args` besides the columns, and its weight in the total.

    `columns` gives the function a column under the name that it asks for: {solution: answer}. `messages` hands it
    completions as lists of messages, as open-r1's and TRL's own rewards take them, whatever the prompt is. `model` is a
    reward model, which the function gets as the argument `model`. `about` names the sets of problems that it is for,
    all where it is absent; on others it gives no score. `preflight: off` skips its proof.
    """

    use: FunctionReference = Field(description="name a function, such as rewards.math:accuracy or ./mine.py:brevity")
    args: dict[str, Any] = {}
    weight: float = 1.0
    columns: dict[str, str] = {}
    messages: bool = False
    model: RewardModelReference | None = None
    about: list[str] | None = None
    preflight: bool = True

    @property
    def name(self) -> str:
        return self.use.rpartition(":")[2]

    def meant_for(self, problems: str) -> bool:
        """Whether it scores completions about this set of problems."""
        return self.about is None or problems in self.about


def shares(total: int, weights: list[float]) -> list[int]:
    """`total` in whole parts in proportion to `weights`; the largest remainders are rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def rewards_of(config: BaseModel) -> Iterator[tuple[str, Reward]]:
    """Every reward of a stage, as (path, reward)."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Reward):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value) if isinstance(item, Reward))


def problem_sets(config: BaseModel) -> list[str]:
    """The references of a stage's `problems`, however many there are."""
    given = getattr(config, "problems", [])
    return [each.use if isinstance(each, Part) else each for each in ([given] if isinstance(given, str) else given)]


def references(config: BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Every reference in a config, as (path, kind, value)."""
    for name, info in type(config).model_fields.items():
        value, where = getattr(config, name), f"{path}{name}"
        inner = [mark for argument in get_args(info.annotation) for mark in getattr(argument, "__metadata__", ())]
        marker = next((mark for mark in [*info.metadata, *inner] if isinstance(mark, Reference)), None)
        if isinstance(value, BaseModel):
            yield from references(value, f"{where}.")
        elif marker and isinstance(value, str):
            yield where, marker.to, value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from references(item, f"{where}.{index}.")
                elif marker:
                    yield f"{where}.{index}", marker.to, item
