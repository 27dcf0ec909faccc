import base64
import json
import subprocess
import sys
from itertools import chain, pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1lite.shared_buffer import fill, make_buffer, open_buffer, views

OTHER = """
import json, sys
import torch
from r1lite.shared_buffer import fill, open_buffer, views

for line in sys.stdin:
    order = json.loads(line)
    if "open" in order:
        buffer = open_buffer(**order["open"])
        told = buffer.numel()
    elif "close" in order:
        buffer = told = None
    elif "fill" in order:
        weights = [(name, torch.tensor(values)) for name, values in order["fill"]]
        told = list(fill(buffer, weights, torch.float32))
    else:
        told = [(name, str(view.dtype), view.shape, view.double().flatten().tolist()) for name, view in views(buffer, order["see"])]
    print(json.dumps(told), flush=True)
"""
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def other():
    """Another process, which does as it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )

    def ask(**order):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.communicate(timeout=20)
    assert process.returncode == 0


def make_weights(shapes, seed=0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [(f"layer.{index}", 1000 * torch.randn(shape, generator=generator)) for index, shape in enumerate(shapes)]


def told_of(weights, dtype) -> list:
    return [
        [name, str(dtype), list(weight.shape), weight.to(dtype).double().flatten().tolist()] for name, weight in weights
    ]


def bytes_of(shape, dtype) -> int:
    return prod(shape) * dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_one_process_fills_the_other_sees(other, dtype):
    buffer = make_buffer(4096, CPU)
    assert other(open=json.loads(json.dumps(buffer.handle))) == 4096
    weights = make_weights([(3, 5), (), (7,), (2, 3, 4), (1,)])
    (layout,) = fill(buffer.bytes, weights, dtype)
    assert other(see=layout) == told_of(weights, dtype)
    weights = make_weights([(3, 5), (), (7,), (2, 3, 4), (1,)], seed=1)
    assert list(fill(buffer.bytes, weights, dtype)) == [layout]
    assert other(see=layout) == told_of(weights, dtype)


def test_what_the_other_process_fills_this_one_sees(other):
    buffer = make_buffer(64, CPU)
    other(open=buffer.handle)
    (layout,) = other(fill=[["a", [1.5, -2.0, 3.0]], ["b", [[4.0], [5.0]]]])
    assert [(name, view.tolist()) for name, view in views(buffer.bytes, layout)] == [
        ("a", [1.5, -2.0, 3.0]),
        ("b", [[4.0], [5.0]]),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_larger_in_sum_than_the_buffer_arrive_whole_and_in_order(other, dtype):
    weights = make_weights([(7, 9), (50,), (), (11, 3), (63,), (1,), (8, 8), (5, 5)] * 3)
    buffer = make_buffer(64 * dtype.itemsize, CPU)
    other(open=buffer.handle)
    parts = [other(see=layout) for layout in fill(buffer.bytes, weights, dtype)]
    assert list(chain(*parts)) == told_of(weights, dtype)
    assert len(parts) > 9 and min(map(len, parts)) > 0


def test_two_processes_open_the_same_buffer_and_a_third_opens_another(other):
    one, two = make_buffer(64, CPU), make_buffer(64, CPU)
    opened = open_buffer(**one.handle)
    other(open=two.handle)
    for buffer, value in ((one, 1.0), (two, 2.0)):
        (layout,) = fill(buffer.bytes, [("a", torch.tensor([value]))], torch.float32)
    assert views(opened, layout)[0][1].tolist() == [1.0]
    assert other(see=layout)[0][-1] == [2.0]


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory has no files elsewhere")
def test_the_memory_is_given_back_once_both_have_let_go_of_it(other):
    buffer = make_buffer(64, CPU)
    file = Path("/dev/shm") / base64.b64decode(buffer.handle["handle"][1]).decode().strip("/")
    other(open=buffer.handle)
    assert file.exists()
    other(close=True)
    assert file.exists()
    del buffer
    assert not file.exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_as_large_as_the_buffer_goes_through_it_alone(other, dtype):
    weights = make_weights([(2,), (13, 5), (3,), (65,), (5, 13), ()])
    buffer = make_buffer(65 * dtype.itemsize, CPU)
    other(open=buffer.handle)
    layouts = []
    for layout in fill(buffer.bytes, weights, dtype):
        layouts.append([name for name, *_ in layout])
        assert other(see=layout) == told_of([weights[int(name.split(".")[1])] for name in layouts[-1]], dtype)
    assert layouts == [["layer.0"], ["layer.1"], ["layer.2"], ["layer.3"], ["layer.4"], ["layer.5"]]


def test_a_weight_larger_than_the_buffer_is_refused_and_not_cut():
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        list(fill(torch.zeros(64, dtype=torch.uint8), make_weights([(17,)]), torch.float32))


SHAPES = st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), max_size=20)


@settings(deadline=None)
@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 600))
@example([(), (), (3,), (), (5, 7)], torch.bfloat16, 0)
@example([(5,), (0,), (0, 3)], torch.float32, 0)
def test_every_weight_lies_once_in_order_aligned_alone_and_within_the_buffer(shapes, dtype, spare):
    size = max([bytes_of(shape, dtype) for shape in shapes], default=0) + spare
    memory = torch.full((size + 128,), 77, dtype=torch.uint8)
    buffer = memory[64 : 64 + size]
    weights = make_weights(shapes)
    places = []
    for layout in fill(buffer, weights, dtype):
        ends = [first + bytes_of(shape, dtype) for _, _, shape, first in layout]
        assert all(first % 16 == 0 for *_, first in layout) and max(ends, default=0) <= size
        assert all(end <= after[-1] for end, after in zip(ends, layout[1:], strict=False))
        next_ones = weights[len(places) : len(places) + len(layout)]
        for (seen, view), (name, weight) in zip(views(buffer, layout), next_ones, strict=True):
            assert seen == name and view.dtype == dtype and torch.equal(view, weight.to(dtype))
        places += layout
    assert [(name, kind, tuple(shape)) for name, kind, shape, _ in places] == [
        (name, str(dtype).removeprefix("torch."), tuple(weight.shape)) for name, weight in weights
    ]
    assert (memory[:64] == 77).all() and (memory[64 + size :] == 77).all()


@settings(deadline=None)
@given(SHAPES.filter(len), st.sampled_from(DTYPES), st.integers(0, 600))
def test_a_part_ends_only_where_the_next_weight_would_not_fit(shapes, dtype, spare):
    size = max(bytes_of(shape, dtype) for shape in shapes) + spare
    layouts = list(fill(torch.zeros(size, dtype=torch.uint8), make_weights(shapes), dtype))
    for part, ((_, _, shape, first), *_) in pairwise(layouts):
        *_, last_shape, last = part[-1]
        end = last + bytes_of(last_shape, dtype)
        assert first == 0 and -(-end // 16) * 16 + bytes_of(shape, dtype) > size
