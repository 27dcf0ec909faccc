"""Servers of rollouts, with a stand-in for vLLM in them: who may talk with them, whose samples are whose, and the weights.

tests/gpu/test_servers.py has the real one.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_fleet import wait_until
from test_launch import finish, start, until
from test_pipeline import stage_directory, workers_of
from test_vllm_engine import PROMPTS, StandIn, assert_has_the_weights_of, change, collect, contents, said

from r1lite import shared_buffer, vllm_loop, vllm_servers
from r1lite.artifacts import RUNNING, Artifact, Spec
from r1lite.launch import RANK_LOGS, Launch, Machine, Servers
from r1lite.machines import announce
from r1lite.models import load_model
from r1lite.pipeline import Planned, serve_stage
from r1lite.ranks import TIMEOUT
from r1lite.records import read_rows, write_json
from r1lite.rollout_server import address_towards
from r1lite.serving import SERVERS, TOKEN, address_files, commands, environment, is_served, serving, write_token
from r1lite.sync_proof import prove_sync
from r1lite.vllm_servers import Connection, VLLMServers, share_of
from r1lite.vllm_worker import share_of as share_of_weights

RECIPE = """
name: t
prompt: plain
launch: {{{launch}, environment: {{OMP_NUM_THREADS: "1"}}}}
stages:
  zero: {{kind: grpo, model: {model}, problems: data/chain.yaml#train, rewards: [{{use: "{folder}/reward.py:length"}}],
         prompts_per_step: 4, generations: 4, max_tokens: 8, temperature: 1.0,
         probe: {{problems: "data/chain.yaml#probe", limit: 3, samples: 2, every_steps: 2}},
         trainer: {{max_steps: {steps}, learning_rate: 1e-2, loss_type: dr_grpo, scale_rewards: none, beta: 0.0,
                    save_steps: 1, gradient_checkpointing: false}}}}
"""
# Servers find the stand-in for vLLM. Trainers only have the communication between them, or TRL would take it for vLLM.
SITE = """
import sys
from importlib.util import module_from_spec, spec_from_file_location

if "r1lite.rollout_server" in sys.orig_argv:
    sys.path.insert(0, "{stand_in}")
elif "r1lite.worker" in sys.orig_argv:
    spec = spec_from_file_location("stand_in", "{stand_in}/vllm.py")
    spec.loader.exec_module(module_from_spec(spec))
"""
REWARD = "def length(completions, **_):\n    return [1.0 - len(c) / 99 for c in completions]\n"


class ServersStandIn(StandIn):
    """Servers with a stand-in for vLLM, and engines for them as a trainer's processes have."""

    def __init__(self, path, stack, monkeypatch):
        super().__init__(path)
        self.stack, self.folder, self.monkeypatch = stack, path / "attempt", monkeypatch

    def start(self, path=None, data_parallel=1, **plan):
        self.plan(**plan)
        self.folder.mkdir()
        write_token(self.folder)
        launch = Launch(rollouts=Servers(data_parallel=data_parallel))
        self.processes = self.stack.enter_context(serving(launch, Machine(), self.folder))
        self.monkeypatch.setenv(RANK_LOGS, str(self.folder))
        self.monkeypatch.setenv(SERVERS, environment(launch)[SERVERS])
        return self.engine(path)

    def engine(self, path=None):
        engine = VLLMServers(path or self.path, [2, 3], 64, 5, "float32")
        self.stack.callback(engine.close)
        return engine

    def connect(self):
        wait_until(lambda: address_files(self.folder))
        return Connection(address_files(self.folder)[0])


@pytest.fixture
def model(toy_model):
    return load_model(toy_model, "float32")


@pytest.fixture
def servers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.getcwd()}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(TIMEOUT, "20")
    before = set(sys.modules)
    with ExitStack() as stack:
        yield ServersStandIn(tmp_path, stack, monkeypatch)
    for name in {name for name in set(sys.modules) - before if name.partition(".")[0] == "vllm"}:
        del sys.modules[name]


# Who may talk with it


def test_only_who_knows_the_token_is_listened_to(servers):
    servers.start()
    file = address_files(servers.folder)[0]
    told = json.loads(file.read_text())
    assert told["host"] == "127.0.0.1", "and nobody from another machine"
    assert (servers.folder / TOKEN).stat().st_mode & 0o777 == 0o600
    token = (servers.folder / TOKEN).read_text()
    assert len(token) > 40
    for said_ in ("", "wrong", token[:-1], token + "x", "é", "x" * 10**6):
        with socket.create_connection((told["host"], told["port"])) as stranger:
            stranger.settimeout(20)
            answer = b""
            with suppress(ConnectionResetError):  # it does not read all of it
                stranger.sendall(said_.encode() + b'\n{"do": "sum"}\n')
                while part := stranger.recv(100):
                    answer += part
            assert answer == b""
    assert Connection(file).place == f"127.0.0.1:{told['port']}"


def test_it_listens_where_the_trainers_are(servers):
    assert address_towards("127.0.0.1") == "127.0.0.1"
    launch = Launch(rollouts=Servers(nodes=2, tensor_parallel=2, data_parallel=2))
    for rank in (3, 4):
        for place, (gpus, command) in enumerate(commands(launch, Machine(rank, 3, "10.0.0.1", 4000, 2), Path("there"))):
            assert gpus == "" and command[3:] == ["there", f"rollout_server_{rank}_{place}", "10.0.0.1"]


def test_the_servers_have_the_gpus_after_those_that_train(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5,6")
    launch = Launch(rollouts=Servers(tensor_parallel=2))
    assert launch.processes() == 3
    assert [gpus for gpus, _ in commands(launch, Machine(), Path("there"))] == ["5,6"]
    two = Launch(gpus=1, rollouts=Servers(tensor_parallel=2, data_parallel=2))
    assert [gpus for gpus, _ in commands(two, Machine(), Path("there"))] == ["1,4", "5,6"]
    far = Launch(rollouts=Servers(nodes=1, tensor_parallel=5))
    assert far.processes() == 5
    assert [gpus for gpus, _ in commands(far, Machine(1, 1, "10.0.0.1", 1, 1), Path("there"))] == ["0,1,4,5,6"]
    with pytest.raises(ValueError, match="tensor_parallel x data_parallel = 4 GPUs and the 2 that train are more than"):
        commands(Launch(gpus=2, rollouts=Servers(data_parallel=4)), Machine(), Path("there"))


def test_what_samples_by_transformers_or_does_not_sample_for_a_trainer_has_no_servers():
    def served(kind, **config):
        return is_served(Launch(rollouts=Servers()), Spec("r", "s", kind, {}, {}, config))

    assert served("grpo", engine="auto") and served("grpo", engine="vllm") and served("distill", engine="auto")
    assert not served("grpo", engine="transformers") and not served("sft") and not served("sample", engine="vllm")
    assert not is_served(Launch(rollouts="colocate"), Spec("r", "s", "grpo", {}, {}, {"engine": "auto"}))
    assert not is_served(None, Spec("r", "s", "grpo", {}, {}, {"engine": "auto"}))


@pytest.mark.parametrize(
    ("servers_", "ranks", "shares"),
    [(1, 1, [[0]]), (3, 1, [[0, 1, 2]]), (3, 2, [[0, 2], [1]]), (2, 5, [[0], [1], [0], [1], [0]])],
)
def test_every_server_is_asked_and_every_process_asks(servers_, ranks, shares):
    assert [share_of(servers_, rank, ranks) for rank in range(ranks)] == shares


# Samples


@pytest.mark.parametrize("data_parallel", [1, 2])
def test_prompts_are_shared_by_the_servers_and_answered_by_whole_groups(servers, data_parallel):
    engine = servers.start(data_parallel=data_parallel)
    finished = collect(engine, 3)
    assert sorted(group.index for group in finished) == list(range(len(PROMPTS)))
    for group in finished:
        first = group.index // data_parallel * 3  # its row at its server
        assert contents(group) == sorted(said(row, PROMPTS[group.index]) for row in range(first, first + 3))
    settings = servers.noted("settings")
    assert [each["seed"] for each in settings] in ([5], [5, 6], [6, 5])
    assert all(each["tensor_parallel_size"] == 1 for each in settings)


def test_two_processes_have_their_own_samples_of_one_server_at_the_same_time(servers):
    """The second one's are done while the first one's are held."""
    engine = servers.start(holds=PROMPTS[2])
    other = SimpleNamespace(mine=[servers.connect()])
    first = engine.generate(PROMPTS, 2, vllm_servers.Sampling(8))
    next(first)
    found = []
    late = Thread(
        target=lambda: found.extend(VLLMServers.generate(other, [[40], [41, 42]], 3, vllm_servers.Sampling(8)))
    )
    late.start()
    time.sleep(0.3)
    servers.go()
    groups = {group.index: group for batch in first for group in batch}
    late.join(20)
    theirs = {group.index: group for batch in found for group in batch}
    assert {index: contents(group) for index, group in theirs.items()} == {
        0: sorted(said(row, [40]) for row in range(3)),
        1: sorted(said(row, [41, 42]) for row in range(3, 6)),
    }
    assert groups.keys() <= set(range(len(PROMPTS))) - {2}
    for index, group in groups.items():
        assert contents(group) == sorted(said(row, PROMPTS[index]) for row in range(2 * index, 2 * index + 2))
    rows = [each["extra_args"]["row"] for order in servers.noted("enqueue") for each in order["parameters"]]
    assert len(rows) == len(PROMPTS) * 2 + 6 and len(set(rows[-6:])) == 6


def test_rows_of_logprobs_are_used_again_and_never_by_two_at_once():
    loop = vllm_loop.Loop.__new__(vllm_loop.Loop)
    loop.rows, loop.running, loop.records = [], {}, False
    first = loop.take_rows(3)
    loop.running = dict.fromkeys(first)
    second = loop.take_rows(2)
    assert len({*first, *second}) == 5
    loop.running |= dict.fromkeys(second)
    loop.rows += first
    for row in first:
        del loop.running[row]
    assert sorted([*loop.take_rows(4), *second]) == list(range(6))


# Weights


def test_all_servers_get_the_trainers_weights(servers, model, toy_model):
    engine = servers.start(toy_model, data_parallel=2, computes=True)
    for _ in range(2):
        change(model)
        with pytest.raises(RuntimeError, match="the vllm engine has not the trainer's weights"):
            prove_sync(engine, model, PROMPTS, 0.7, 12)
        engine.sync(model)
        assert len(engine.weight_sums()) == 2
        prove_sync(engine, model, PROMPTS, 0.7, 12)
        assert_has_the_weights_of(engine, model, servers)


def test_weights_come_in_as_many_parts_as_the_buffer_needs(servers, model, toy_model, monkeypatch):
    monkeypatch.setattr(shared_buffer, "BYTES", 1)
    engine = servers.start(toy_model)
    change(model)
    engine.sync(model)
    assert_has_the_weights_of(engine, model, servers)
    assert len(servers.noted("load")) >= 3


def test_a_proof_tells_of_one_server_of_two_that_has_old_weights(servers, model, toy_model):
    engine = servers.start(toy_model, data_parallel=2, computes=True)
    engine.all = engine.all[:1]
    change(model)
    engine.sync(model)
    engine.all = engine.mine
    with pytest.raises(RuntimeError, match="has not the trainer's weights"):
        prove_sync(engine, model, PROMPTS, 0.7, 12)


class Layer(torch.nn.Module):
    def __init__(self, **weights):
        super().__init__()
        for name, weight in weights.items():
            setattr(self, name, torch.nn.Parameter(weight))


def test_of_a_shared_model_each_weight_counts_once(monkeypatch):
    """As vLLM shares it: columns, rows and words are parted, keys and values may be on several, the rest is on all."""
    kinds = {name: type(name, (Layer,), {}) for name in ("Column", "Row", "Words", "Plain")}
    kinds["QKV"] = type("QKV", (kinds["Column"],), {})
    linear, words = ModuleType("linear"), ModuleType("words")
    linear.ColumnParallelLinear, linear.RowParallelLinear = kinds["Column"], kinds["Row"]
    linear.QKVParallelLinear, words.VocabParallelEmbedding = kinds["QKV"], kinds["Words"]
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.linear", linear)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.vocab_parallel_embedding", words)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gpus = 4
    column, column_bias, row, row_bias = drawn(8, 6), drawn(8), drawn(6, 8), drawn(6)
    embeddings, norm, query, keys, values = drawn(12, 6), drawn(6), drawn(8, 6), drawn(2, 6), drawn(2, 6)
    everything = [column, column_bias, row, row_bias, embeddings, norm, query, keys, values]
    counted = torch.zeros(2, dtype=torch.float64)
    for rank in range(gpus):
        group = rank // 2  # of the GPUs that have the same one of two heads of keys and values
        qkv = kinds["QKV"](weight=torch.cat([query.chunk(gpus)[rank], keys.chunk(2)[group], values.chunk(2)[group]]))
        qkv.num_heads, qkv.head_size, qkv.num_kv_head_replicas = 2, 1, 2
        whole_words = kinds["Words"](weight=embeddings.chunk(gpus)[rank])
        tied = kinds["Words"](weight=torch.zeros(0))
        tied.weight = whole_words.weight
        shared = torch.nn.ModuleList([
            kinds["Column"](weight=column.chunk(gpus)[rank], bias=column_bias.chunk(gpus)[rank]),
            kinds["Row"](weight=row.chunk(gpus, 1)[rank], bias=row_bias),
            kinds["Plain"](weight=norm), qkv, whole_words, tied,
        ])  # fmt: skip
        for weight in share_of_weights(shared, rank):
            counted += torch.stack([weight.sum(), weight.abs().sum()]).detach()
    expected = torch.stack([sum(each.sum() for each in everything), sum(each.abs().sum() for each in everything)])
    assert torch.allclose(counted, expected, rtol=1e-12)


# Ends


def test_a_server_that_dies_is_told_with_its_place(servers):
    engine = servers.start(holds=PROMPTS[1], dies="hold")
    finished = []
    with pytest.raises(RuntimeError, match=r"the server of rollouts at 127.0.0.1:\d+ has hung up, or has said nothing"):
        collect(engine, finished=finished)
    assert [group.index for group in finished] == [1]


def test_a_server_that_is_silent_is_told(servers, monkeypatch):
    monkeypatch.setenv(TIMEOUT, "2")
    engine = servers.start()
    servers.processes[0].send_signal(signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="said nothing for 2 s, which is launch.timeout"):
        collect(engine)


def test_a_server_at_work_says_so_though_nothing_ends(servers, monkeypatch):
    """Otherwise long completions would look like a server that hangs."""
    said_ = []

    def step():
        loop.steps += 1
        return [
            SimpleNamespace(
                finished=loop.steps > 40,
                request_id="7",
                outputs=[SimpleNamespace(token_ids=(1,), finish_reason="stop")],
            )
        ]

    monkeypatch.setattr(vllm_loop, "ALIVE", 0.05)
    monkeypatch.setattr(vllm_loop, "tell", lambda results, line: said_.append((results, line)))
    loop = vllm_loop.Loop.__new__(vllm_loop.Loop)
    loop.rows, loop.ended, loop.records, loop.wants_logprobs, loop.steps, loop.last = [], [], False, False, 0, 0.0
    loop.llm = SimpleNamespace(llm_engine=SimpleNamespace(step=step))
    loop.running = {"7": vllm_loop.Running(vllm_loop.Call("who", 1), 0, 2, 0)}
    while loop.running:
        loop.step()
        time.sleep(0.005)
    lines = [line for _, line in said_]
    assert lines.count("[]\n") >= 2 and lines[-1] == "ready\n" and json.loads(lines[-2])[0][0] == 0


def test_servers_that_never_come_are_missed(servers, monkeypatch):
    monkeypatch.setenv(TIMEOUT, "1")
    monkeypatch.setenv(RANK_LOGS, str(servers.path))
    monkeypatch.setenv(SERVERS, json.dumps({"servers": 2, "tensor_parallel": 1}))
    with pytest.raises(RuntimeError, match="0 of 2 servers of rollouts have started within 1 s, .*on all machines"):
        servers.engine()


# A run


@pytest.fixture
def project(tmp_path, toy_model, monkeypatch):
    for name in ("stand_in", "site"):
        (tmp_path / name).mkdir()
    StandIn(tmp_path / "stand_in").plan(computes=True)
    (tmp_path / "site/sitecustomize.py").write_text(SITE.format(stand_in=tmp_path / "stand_in"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "reward.py").write_text(REWARD)

    def write(launch, steps):
        text = RECIPE.format(model=toy_model, folder=tmp_path, launch=launch, steps=steps)
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path

    return write


def servers_of(project: Path) -> list[int]:
    return workers_of(project, "r1lite.rollout_server")


def attempts(project: Path) -> Path:
    return stage_directory(project, "zero") / "logs"


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_train_with_two_servers(project):
    there = project("gpus: 2, rollouts: {data_parallel: 2}", 3)
    finish(start(there), 0)
    assert not servers_of(there) and not workers_of(there)
    for step in range(3):
        rows = list(read_rows(stage_directory(there, "zero") / f"rollouts/step_{step:06d}.parquet"))
        assert Counter(row["problem_id"] for row in rows) == dict.fromkeys({row["problem_id"] for row in rows}, 4)
        assert len(rows) == 16
    files = {path.name for path in attempts(there).glob("attempt_1/*")}
    assert {"rollout_server_0_0.log", "rollout_server_0_1.log", "rank_0.log", "rank_1.log"} <= files
    assert TOKEN not in files


@pytest.mark.slow
@pytest.mark.alone
def test_a_machine_that_only_serves_ends_and_fails_with_the_one_that_trains(project):
    there = project("num_machines: 1, gpus: 1, main_process_ip: 127.0.0.1, rollouts: {nodes: 1}", 40)
    first, second = (start(there, "--machine-rank", str(rank)) for rank in (0, 1))
    until(first, r"step 2/40")
    (server,) = servers_of(there)
    os.kill(server, signal.SIGKILL)
    told = finish(first, 1)
    assert re.search(r"has ended on another machine|the server of rollouts at 127.0.0.1:\d+ has hung up", told), told
    assert re.search(r"ended with exit code -9; its log is .*rollout_server_1_0.log", finish(second, 1))
    assert not servers_of(there) and not workers_of(there) and not list(there.rglob(RUNNING))

    first, second = (start(there, "--machine-rank", str(rank)) for rank in (0, 1))
    until(first, r"step 5/40")
    second.send_signal(signal.SIGTERM)
    assert "was asked to stop" in finish(first, 0)
    assert "was asked to stop" in finish(second, 0)
    assert not servers_of(there)

    # As if the first machine had been lost, and the other were there before it.
    write_token(attempts(there) / "attempt_2")
    write_json(stage_directory(there, "zero") / RUNNING, {"attempt": "attempt_2", "processes": 1})
    second = start(there, "--machine-rank", "1")
    wait_until(lambda: servers_of(there))
    first = start(there, "--machine-rank", "0")
    assert "resuming from step" in finish(first, 0)
    finish(second, 0)
    assert not servers_of(there)


def test_a_machine_with_too_few_gpus_for_its_servers_ends_the_others_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch = Launch(rollouts=Servers(nodes=1, data_parallel=4))
    artifact = Artifact(tmp_path)
    announce(artifact, "attempt_1", 8)
    planned = Planned(Spec("r", "zero", "grpo", {}, {}, {"engine": "auto"}), artifact, "run", "")
    with pytest.raises(ValueError, match="data_parallel = 4 GPUs are more than the 2 of this machine"):
        serve_stage(planned, launch, Machine(1, 1, "127.0.0.1", 29500, 1))
    assert not (tmp_path / RUNNING).exists()
