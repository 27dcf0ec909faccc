"""On several NVIDIA GPUs with vLLM: servers of rollouts sample from the weights that they are handed, by NCCL."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from test_vllm import PROMPTS, assert_follows, difference

from r1lite.launch import RANK_LOGS, Launch, Machine, Servers
from r1lite.models import end_tokens, load_model, load_tokenizer
from r1lite.serving import SERVERS, environment, serving, write_token
from r1lite.sync_proof import prove_sync
from r1lite.vllm_servers import VLLMServers

pytestmark = pytest.mark.gpu
BASE = "data/tiny_base"


@pytest.mark.parametrize(("tensor_parallel", "data_parallel"), [(1, 1), (2, 1), (1, 2)])
def test_servers_follow_the_model_by_its_weights(tmp_path, monkeypatch, tensor_parallel, data_parallel):
    if torch.cuda.device_count() < 1 + tensor_parallel * data_parallel:
        pytest.skip("needs more GPUs")
    launch = Launch(gpus=1, rollouts=Servers(tensor_parallel=tensor_parallel, data_parallel=data_parallel))
    monkeypatch.setenv(RANK_LOGS, str(tmp_path))
    monkeypatch.setenv(SERVERS, environment(launch)[SERVERS])
    write_token(tmp_path)
    model = load_model(BASE, "float32").cuda()
    eos = end_tokens(model.generation_config, load_tokenizer(BASE))
    with ExitStack() as stack:
        stack.enter_context(serving(launch, Machine(), tmp_path))
        vllm = VLLMServers(Path(BASE), eos, 128, 0, "float32")
        stack.callback(vllm.close)
        vllm.sync(model)
        prove_sync(vllm, model, PROMPTS, 1.0, 8)
        assert len(vllm.weight_sums()) == data_parallel
        assert_follows(vllm, model)
        assert difference(vllm, model, prompts=[[7, 8, 9 + index % 30] for index in range(1300)], n=1) < 0.01
