"""What the stages' configs have in common: the fields of every stage, and the types of what they refer to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from r1lite.prompts import TEMPLATES


@dataclass(frozen=True)
class Reference:
    """Marks a config field that names something outside the recipe: "model", "problems", "function" or "rollouts"."""

    to: str


ModelReference = Annotated[str, Reference("model")]  # $stage, a directory, or a hub id
ProblemsReference = Annotated[str, Reference("problems")]  # card.yaml#split, a .jsonl or a .parquet file
FunctionReference = Annotated[str, Reference("function")]  # module:function or path.py:function
RolloutsReference = Annotated[str, Reference("rollouts")]  # a .jsonl or a .parquet file
EngineName = Literal["auto", "vllm", "transformers"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(Strict):
    """`seed` and `prompt` of a stage are the recipe's unless the stage says otherwise."""

    PRODUCES: ClassVar[str]

    kind: str
    seed: int = 0
    prompt: Literal[*TEMPLATES] = "r1_zero"  # type: ignore[valid-type]

    def faults(self) -> Iterator[str]:
        """What the types cannot say, each as `field: what is wrong and what to do`."""
        yield from ()


class Reward(Strict):
    """A reward function by name, called with `args` besides the columns, and its weight in the total.

    `columns` gives the function a column under the name that it asks for: {solution: answer}. `messages` hands it
    completions as lists of messages, as open-r1's and TRL's own rewards take them, whatever the prompt is. `model` is a
    reward model, which the function gets as the argument `model`. `preflight: off` skips its proof.
    """

    use: FunctionReference = Field(description="name a function, such as rewards.math:accuracy or ./mine.py:brevity")
    args: dict[str, Any] = {}
    weight: float = 1.0
    columns: dict[str, str] = {}
    messages: bool = False
    model: ModelReference | None = None
    preflight: bool = True

    @property
    def name(self) -> str:
        return self.use.rpartition(":")[2]


def rewards_of(config: BaseModel) -> Iterator[tuple[str, Reward]]:
    """Every reward of a stage, as (path, reward)."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Reward):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value) if isinstance(item, Reward))


def references(config: BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Every reference in a config, as (path, kind, value)."""
    for name, info in type(config).model_fields.items():
        value, where = getattr(config, name), f"{path}{name}"
        marker = next((mark for mark in info.metadata if isinstance(mark, Reference)), None)
        if isinstance(value, BaseModel):
            yield from references(value, f"{where}.")
        elif marker and value is not None:
            yield where, marker.to, value
        elif isinstance(value, list):
            inner = [mark for argument in get_args(info.annotation) for mark in getattr(argument, "__metadata__", ())]
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from references(item, f"{where}.{index}.")
                elif inner:
                    yield f"{where}.{index}", inner[0].to, item
