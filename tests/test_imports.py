"""Imports go one way, and heavy libraries are imported inside the functions that need them."""

import ast
from pathlib import Path

import pytest

# Each may import those before it; modules of one group do not import one another unless it says so here.
ORDER = [
    {"records", "metrics", "strict_yaml", "hacks", "ranks", "sharding"},
    {"intervals"},
    {"observe", "prompts", "plugins", "artifacts"},
    {"pool", "watchdog"},
    {"sandbox"},
    {"rewards"},
    {"trainer_keys", "models", "curves"},
    {"problems"},
    {"stages.config"},
    {"launch"},
    {"serving", "cluster"},
    {"machines", "memory"},
    {"engines", "bands", "shared_buffer", "vllm_logprobs", "weight_group"},
    {"vllm_process", "vllm_worker"},
    {"fleet", "vllm_engine", "vllm_servers", "vllm_loop"},
    {"rollout_server"},
    {"rubric"},
    {"filters", "judging", "protocol"},
    {"endpoint"},
    {"sampling"},
    {"summary", "compare"},
    {"preflight"},
    {"scoring"},
    {"training"},
    {"schedule", "packing", "sync_proof", "dynamic_sampling"},
    {"rollouts"},
    {"rollout_trainer"},
    {"packed_trainer"},
    {"trainer", "finetune", "preference", "distillation"},
    {"stages.base", "stages.sft", "stages.grpo", "stages.reward_model"},
    {"stages.sample", "stages.select", "stages.evaluate", "stages.grade"},
    {"stages.distill"},
    {"recipe"},
    {"hardware"},
    {"pipeline", "worker"},
    {"report"},
    {"cli"},
]
HEAVY = {"torch", "transformers", "trl", "vllm", "datasets", "accelerate", "matplotlib", "pyarrow", "huggingface_hub"}
# What only a training stage imports, inside its `run`.
TRAINERS = {
    "distillation", "finetune", "packed_trainer", "packing", "preference", "rollout_trainer", "rollouts",
    "shared_buffer", "sync_proof", "trainer", "training", "vllm_engine", "vllm_logprobs", "vllm_servers", "vllm_worker",
    "weight_group",
}  # fmt: skip
MODULES = {
    ".".join(path.with_suffix("").parts[1:]): path
    for path in sorted(Path("r1lite").rglob("*.py"))
    if path.stem != "__init__"
}
SOURCES = {**MODULES, **{f"rewards.{path.stem}": path for path in Path("rewards").glob("*.py")}}


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, anywhere in it but for type checking."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            found |= {name.removeprefix("r1lite.") for name in names if name.startswith(("r1lite.", "rewards"))}
    return found & {*MODULES, "rewards", *SOURCES}


def rank(module: str) -> int:
    name = "rewards" if module.startswith("rewards") else module
    (position,) = (index for index, group in enumerate(ORDER) if name in group)
    return position


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_go_one_way(module):
    for other in imported(SOURCES[module]):
        if not (module.startswith("rewards") and other.startswith("rewards")):
            assert rank(other) < rank(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(set(SOURCES) - TRAINERS))
def test_heavy_libraries_are_imported_where_they_are_used(module):
    for node in ast.parse(SOURCES[module].read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & HEAVY, f"{module} imports {names} at its top"
