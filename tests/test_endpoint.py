"""Samples from a server: what is asked of it, what its faults cost, and what an error tells.

The server here answers as vLLM's does, and fails as it is told to.
"""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from r1lite import endpoint as module
from r1lite.endpoint import Endpoint, EndpointEngine, delay, in_batches, reachable, seconds_until
from r1lite.engines import Sampling
from r1lite.records import seed_from

SAMPLING = Sampling(max_tokens=8, temperature=0.6, top_p=0.9, seed=5)
CHAT = [{"role": "user", "content": "2+2?"}]
TRUSTED = httpx.create_ssl_context()  # reading all certificates takes longer than most tests
KEY = "sk-secret-0123456789"
SURE = ["429", "500", "503", "reset", "silent", "half", "html", "gateway", "abort", "408"]  # each is worth a retry


class Server(ThreadingHTTPServer):
    """`faults` are used up one a request; `answer` makes the JSON of all others from their body."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock, self.release = threading.Condition(), threading.Event()
        self.faults, self.headers, self.bodies, self.paths, self.starts = [], [], [], [], []
        self.models = {"data": [{"id": "teacher"}, {"id": "other"}]}
        self.answer, self.together = complete, 1  # so many requests wait for one another
        self.running = self.most_running = 0

    def handle_error(self, *_):  # clients that hang up are part of the tests
        pass


def complete(body):
    text = f"{body['prompt']}|{body['seed']}" if "prompt" in body else None
    choice = {"text": text} if text else {"message": {"role": "assistant", "content": f"4|{body['seed']}"}}
    return {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": {"completion_tokens": 3}}


def say(message=None, text=None, finish_reason="stop", **usage):
    choice = {"finish_reason": finish_reason, **({"text": text} if message is None else {"message": message})}
    return lambda _: {"choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        assert self.path == "/v1/models"
        models = self.server.models
        self.reply(404, {"detail": "Not Found"}) if models is None else self.reply(200, models)

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            fault = server.faults.pop(0) if server.faults else None
            server.headers.append(self.headers)
            server.bodies.append(body)
            server.paths.append(self.path)
            server.starts.append(time.monotonic())
            server.lock.wait_for(lambda: server.most_running >= server.together, timeout=10)
            server.lock.notify_all()
        time.sleep(0.001)
        with server.lock:
            server.running -= 1
        getattr(self, f"fail_{fault}")() if hasattr(self, f"fail_{fault}") else self.fail(fault, body)

    def fail(self, fault, body):
        if fault is None:
            self.reply(200, self.server.answer(body))
        elif isinstance(fault, bytes):
            self.reply(200, fault)
        else:
            status, *headers = fault if isinstance(fault, tuple) else (int(fault),)
            self.reply(status, {"error": {"message": f"sorry, {KEY} \x1b[31m" + "x" * 1000}}, *headers)

    def fail_reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def fail_silent(self):
        self.close_connection = True

    def fail_half(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def fail_html(self):
        self.reply(200, b"<html>Bad Gateway</html>")

    def fail_gateway(self):
        self.reply(200, {"error": {"message": "upstream failed"}})

    def fail_abort(self):
        self.reply(200, say(text="half a", finish_reason="abort")(None))

    def fail_hang(self):
        self.server.release.wait(20)
        self.close_connection = True

    def reply(self, status, content, *headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving():
    """A new one for each test, so that what one has not waited for is not counted in the next."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.0005)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: TRUSTED)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        yield server


def collect(server, prompts=(("2+2", range(1)),), samples=None, **options):
    samples = [] if samples is None else samples
    with closing(EndpointEngine(Endpoint(url=server.url, model="teacher", **options))) as engine:
        for batch in engine.stream(prompts, SAMPLING):
            samples += batch
    return samples


def text_of(server, prompt="2+2", **options):
    (sample,) = collect(server, [(prompt, range(1))], **options)
    return sample.text


# What is asked, and what comes


def test_a_prompt_is_asked_as_a_completion_with_all_of_the_sampling(server):
    (sample,) = collect(server)
    seed = seed_from("5/0/0")
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {"model": "teacher", "prompt": "2+2", "max_tokens": 8, "temperature": 0.6, "top_p": 0.9, "seed": seed}
    ]
    assert (sample.index, sample.number, sample.text, sample.seed) == (0, 0, f"2+2|{seed}", seed)
    assert (sample.tokens, sample.finish_reason) == (3, "stop")


def test_messages_are_asked_as_a_chat(server):
    assert text_of(server, CHAT) == f"4|{seed_from('5/0/0')}"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == CHAT and "prompt" not in server.bodies[0]


def test_every_sample_is_a_request_with_a_seed_of_its_own(server):
    samples = collect(server, [("a", range(5)), (CHAT, range(1)), ("c", range(3)), ("d", [])])
    assert Counter(sample.index for sample in samples) == {0: 5, 1: 1, 2: 3}
    assert len({sample.seed for sample in samples}) == len(server.bodies) == 9
    for sample in samples:
        assert sample.text == f"{['a', '4', 'c'][sample.index]}|{sample.seed}"


def test_who_goes_on_gets_the_samples_that_are_missing_as_they_would_have_been(server):
    prompts = [("a", range(4)), ("b", range(2))]
    whole = {(each.index, each.number): each.seed for each in collect(server, prompts)}
    rest = collect(server, [("a", [1, 3]), ("b", [])])
    assert {(each.index, each.number): each.seed for each in rest} == {at: whole[at] for at in [(0, 1), (0, 3)]}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_a_server_has_taken_out_get_their_tags_back(server, name):
    server.answer = say({"content": "\n\n4", name: "2 and 2"})
    assert text_of(server, CHAT) == "<think>2 and 2</think>\n\n4"
    server.answer = say({"content": "4", name: None})
    assert text_of(server, CHAT) == "4"


@pytest.mark.parametrize("content", [None, ""])
def test_a_thought_that_is_cut_off_is_not_closed(server, content):
    server.answer = say({"content": content, "reasoning_content": "2 and"}, finish_reason="length")
    assert text_of(server, CHAT) == "<think>2 and"
    server.answer = say({"content": content, "reasoning_content": "2 and 2"}, finish_reason="stop")
    assert text_of(server, CHAT) == "<think>2 and 2</think>"


def test_what_a_server_does_not_say_is_none(server):
    server.answer = lambda _: {"choices": [{"text": "4"}]}
    (sample,) = collect(server)
    assert (sample.text, sample.tokens, sample.finish_reason) == ("4", None, None)


def test_halves_of_characters_are_replaced(server):
    server.faults = [rb'{"choices": [{"text": "4\ud800 \ud83d\ude00", "finish_reason": "stop"}]}']
    assert text_of(server) == "4\ufffd \U0001f600"


def test_what_is_finished_is_handed_over_while_the_rest_goes_on(server, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    server.faults = ["hang"]
    with closing(EndpointEngine(Endpoint(url=server.url, model="teacher", concurrent=2))) as engine:
        batches = engine.stream([("a", range(4))], SAMPLING)
        first = next(batches)
        assert 1 <= len(first) <= 3 and not server.release.is_set()
        server.release.set()
        assert len(first) + sum(map(len, batches)) == 4


def test_batches_are_not_large(monkeypatch):
    queue = module.Queue()
    for item in [*range(150), None]:
        queue.put(item)
    assert [len(batch) for batch in in_batches(queue)] == [64, 64, 22]


def test_top_k_is_refused(server):
    engine = EndpointEngine(Endpoint(url=server.url, model="teacher"))
    with closing(engine), pytest.raises(ValueError, match="top_k 20: OpenAI's API does not have it"):
        next(engine.stream([("a", range(1))], Sampling(8, top_k=20)))


# How much at once


@pytest.mark.parametrize("concurrent", [1, 3, 120])  # httpx by itself opens no more than 100 connections
def test_as_many_requests_run_at_once_as_is_said(server, concurrent):
    server.together = concurrent
    collect(server, [("a", range(concurrent * 2))], concurrent=concurrent)
    assert server.most_running == concurrent


def test_requests_start_no_faster_than_the_limit_with_retries_counted(server):
    server.faults = ["500"] * 5
    collect(server, [("a", range(15))], requests_per_minute=3000)
    assert len(server.starts) == 20
    assert server.starts[-1] - server.starts[0] > 0.3  # of 0.38 s, as the first may come late; a tenth without a limit


# Faults


@pytest.mark.parametrize("fault", SURE)
def test_a_passing_fault_costs_nothing_but_a_retry(server, fault):
    server.faults = [fault, fault]
    with closing(EndpointEngine(Endpoint(url=server.url, model="teacher"))) as engine:
        (sample,) = [each for batch in engine.stream([("2+2", range(1))], SAMPLING) for each in batch]
        assert sum(engine.retries.values()) == 2
    assert sample.text == f"2+2|{sample.seed}"
    assert [body["seed"] for body in server.bodies] == [sample.seed] * 3


def test_a_server_says_how_long_to_wait(server):
    server.faults = [(429, ("Retry-After", "0.3"))]
    collect(server)
    assert server.starts[1] - server.starts[0] >= 0.3


def test_a_request_that_takes_too_long_is_asked_again(server):
    server.faults = ["hang"]
    assert text_of(server, timeout=0.2)
    assert 0.15 < server.starts[1] - server.starts[0] < 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("", 0),
        ("soon", 0),
        ("\u00b2", 0),
        ("Wed, 99 Foo 2020", 0),
        ("Mon, 01 Jan 2001 00:00:00 -0000", 0),
    ],
)
def test_retry_after(header, seconds):
    assert max(0, seconds_until(header)) == seconds


def test_retry_after_as_a_date():
    assert 28 < seconds_until(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)) <= 30


@pytest.mark.parametrize("wait", [0, -5, 7, 1e9, float("inf"), float("nan")])
def test_waits_grow_and_have_a_bound(wait):
    for attempt in range(1, module.ATTEMPTS):
        least = (wait if 0 < wait < 60 else 0) + module.FIRST_DELAY * 2 ** (attempt - 1) / 2
        assert min(60, least) <= delay(attempt, wait) <= 60


def test_a_fault_that_does_not_pass_ends_the_run_after_what_was_on_its_way(server):
    server.answer, samples = lambda body: complete(body) if body["prompt"] == "a" else b"<html>", []
    with pytest.raises(RuntimeError, match="has failed 8 times, at last with no JSON: <html>. What .* same command"):
        collect(server, [("a", range(3)), ("b", range(1)), ("a", range(3000))], samples, concurrent=4)
    seeds = Counter(body["seed"] for body in server.bodies)
    assert len(samples) >= 3 and all(each.text for each in samples)
    assert len(seeds) == len(samples) + 1 < 3000 and seeds[seed_from("5/1/0")] == 8


def test_what_was_on_its_way_is_not_tried_for_long(server):
    server.faults = [(429, ("Retry-After", "0.4")), *["html"] * 9]
    with pytest.raises(RuntimeError, match="no JSON"):
        collect(server, [("a", range(2))], concurrent=2)
    assert len(server.bodies) == 1 + 8 + 1  # the first again, once, when it has waited


def test_a_limit_that_does_not_pass_says_how_to_go_slower(server):
    server.faults = ["429"] * 100
    with pytest.raises(RuntimeError, match="HTTP 429: sorry.*set a lower `requests_per_minute` or `concurrent`. What"):
        collect(server)


def test_a_server_that_is_gone_ends_the_run(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        engine = EndpointEngine(Endpoint(url=f"http://127.0.0.1:{unused.getsockname()[1]}", model="m"))
        with closing(engine), pytest.raises(RuntimeError, match="has failed 8 times, at last with ConnectError: "):
            list(engine.stream([("a", range(2))], SAMPLING))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("400", r"/v1/completions answers HTTP 400 \(sorry, .*x\); change what it does not take"),
        ("401", "HTTP 401 .*; set the environment variable OPENAI_API_KEY$"),
        ("403", "HTTP 403 .*; set the environment variable OPENAI_API_KEY$"),
        ("404", r"HTTP 404 .*; correct `url`, or `model` \(here teacher\) to one that it serves: teacher, other"),
        ((307, ("Location", "http://127.0.0.1:9/evil")), "write as `url` where it redirects to: http://127.0.0.1:9/evil"),
        (b'{"choices": [{"text": 4}]}', r'does not answer as OpenAI\'s API does; .* It sends: {"text": 4}'),
        (b'{"choices": ["4"]}', "It sends: \"4\""),
        (b'{"choices": [{"message": {"content": [1]}}]}', "does not answer as OpenAI's API does"),
        (b'{"choices": [{"message": null}]}', "does not answer as OpenAI's API does"),
        (b'{"choices": [{"text": "4", "finish_reason": {}}]}', "does not answer as OpenAI's API does"),
    ],
)  # fmt: skip
def test_what_asking_again_does_not_mend_ends_the_run_at_once(server, fault, told):
    server.faults = [fault]
    with pytest.raises(ValueError, match=told) as error:
        collect(server, [("a", range(50))], concurrent=1)
    assert len(server.bodies) == 1
    assert len(str(error.value)) < 600 and "\x1b" not in str(error.value)


def test_a_404_of_a_server_that_lists_nothing(server):
    server.faults, server.models = ["404"], None
    with pytest.raises(ValueError, match="it does not tell; most urls end in /v1"):
        collect(server)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"7", b"[]", b'{"choices": []}', b'{"choices": {"0": 1}}', b"\xff"]
)
def test_an_answer_without_a_choice_is_told_in_the_end(server, content):
    server.faults = [content] * 8
    with pytest.raises(RuntimeError, match="at last with no (JSON|choices): "):
        collect(server)


def test_an_endless_answer_is_not_read_to_its_end(server, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    server.faults = [b" " * 20_000]
    with pytest.raises(ValueError, match="sends more than 10,000 bytes"):
        collect(server)


def test_all_are_refused_at_once_and_one_error_tells(server):
    server.faults = ["401"] * 50
    with pytest.raises(ValueError, match="HTTP 401"):
        collect(server, [("a", range(50))], concurrent=8)


@settings(max_examples=15, deadline=None)
@given(
    faults=st.lists(st.sampled_from([*SURE, None, None]), max_size=7), concurrent=st.integers(1, 8), seed=st.integers()
)
def test_every_sample_comes_exactly_once_whatever_the_faults(faults, concurrent, seed):
    chance = random.Random(seed)
    wanted = {(index, number) for index in range(5) for number in range(4) if chance.random() < 0.6}
    prompts = [(f"p{index}", [number for at, number in sorted(wanted) if at == index]) for index in range(5)]
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.setattr(module, "FIRST_DELAY", 0.0005)
        server.faults = list(faults)
        samples = collect(server, prompts, concurrent=concurrent)
    assert Counter((each.index, each.number) for each in samples) == Counter(wanted)
    assert all(each.text == f"p{each.index}|{each.seed}" for each in samples)


# An early end


def test_who_stops_listening_does_not_wait_for_the_rest(server, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    server.faults = [None, *["hang"] * 8]
    engine = EndpointEngine(Endpoint(url=server.url, model="teacher", concurrent=4))
    start = time.monotonic()
    batches = engine.stream([("a", range(1000))], SAMPLING)
    next(batches)
    batches.close()
    engine.close()
    assert time.monotonic() - start < 3 and not engine.thread.is_alive()
    assert len(server.bodies) <= 8


def test_an_engine_asks_no_more_for_who_has_stopped_listening(server, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.02)
    with closing(EndpointEngine(Endpoint(url=server.url, model="teacher", requests_per_minute=6000))) as engine:
        for _ in engine.stream([("a", range(1000))], SAMPLING):
            break
        time.sleep(0.1)
        asked = len(server.bodies)
        time.sleep(0.2)
        assert len(server.bodies) == asked < 1000


def test_a_closed_engine_ends_a_stream_that_is_still_open(server, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    server.faults = [None, "hang", "hang"]
    engine = EndpointEngine(Endpoint(url=server.url, model="teacher", concurrent=2))
    batches = engine.stream([("a", range(1000))], SAMPLING)
    next(batches)
    engine.close()
    with pytest.raises(CancelledError):
        list(batches)


def test_one_engine_streams_more_than_once(server):
    with closing(EndpointEngine(Endpoint(url=server.url, model="teacher"))) as engine:
        for prompt in ("a", "b"):
            assert [each.text[0] for batch in engine.stream([(prompt, range(2))], SAMPLING) for each in batch] == [
                prompt
            ] * 2


def test_nothing_to_ask(server):
    assert collect(server, [("a", [])]) == []


# The key


def test_a_key_is_sent_as_a_bearer_and_never_told(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\n")  # as `export KEY=$(...)` or a file may leave it
    collect(server, key="TEACHER_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    for status in ("400", "401", "403", "404", "429"):
        server.faults = [status] * 8
        with pytest.raises((ValueError, RuntimeError), match="sorry, \\*\\*\\*") as error:
            collect(server, key="TEACHER_KEY")
        assert KEY not in str(error.value)
        assert status != "401" or "set the environment variable TEACHER_KEY to a key that it takes" in str(error.value)


@pytest.mark.parametrize("key", [None, "NOT_SET"])
def test_no_key_no_header(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    collect(server, key=key)
    assert "Authorization" not in server.headers[0]
    server.faults = ["401"]
    with pytest.raises(ValueError, match="variable"):
        collect(server, key=key)


def test_the_key_does_not_follow_a_redirect(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults = [(302, ("Location", f"{server.url}/elsewhere"))]
    with pytest.raises(ValueError, match="HTTP 302 .*redirects to"):
        collect(server)
    assert len(server.headers) == 1


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="the environment variable OPENAI_API_KEY holds no key") as error:
        collect(server)
    assert key not in str(error.value)


@pytest.mark.parametrize("host", ["teacher.example", "10.0.0.7", "127.0.0.1.evil.example", "localhost.example"])
def test_a_key_does_not_go_over_the_net_in_the_clear(monkeypatch, host):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint(url=f"http://{host}/v1", model="m")
    for ask in (EndpointEngine, reachable):
        with pytest.raises(ValueError, match=f"the key in OPENAI_API_KEY would go to {host} in the clear"):
            ask(endpoint)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://localhost:8000/v1", KEY),
        ("http://[::1]:80", KEY),
        ("https://a.example/v1", KEY),
        ("http://10.0.0.7", ""),
    ],
)
def test_where_a_key_may_go(monkeypatch, url, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    EndpointEngine(Endpoint(url=url, model="m")).close()


# What a recipe may say, and what is told before the run


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000/v1",
        "ftp://a/v1",
        "https://user:pass@a/v1",
        "https://a/v1?key=x",
        "http://",
        "https://a b/v1",
        "http://a/v1#x",
    ],
)
def test_a_url_that_is_none(url):
    with pytest.raises(ValidationError, match="no base url of an API; write one such as http://127.0.0.1:8000/v1"):
        Endpoint(url=url, model="m")


@pytest.mark.parametrize("key", [KEY, "gsk_abc123", ""])
def test_the_key_itself_is_no_name(key):
    with pytest.raises(ValidationError, match="no name of an environment variable"):
        Endpoint(url="https://a/v1", model="m", key=key)


def test_a_slash_at_the_end_changes_nothing(server):
    assert Endpoint(url=f"{server.url}/", model="m").url == server.url


@pytest.mark.parametrize("models", [None, {"data": [{"id": "teacher"}]}, {"data": []}, [{"id": "x"}], {"models": 1}])
def test_a_server_that_can_be_asked(server, models):
    server.models = models
    reachable(Endpoint(url=server.url, model="teacher"))


def test_a_server_that_serves_something_else(server):
    with pytest.raises(ValueError, match="does not serve teach; set `model` to what it serves: teacher, other"):
        reachable(Endpoint(url=server.url, model="teach"))


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "HTTP 401 .*set the environment variable OPENAI_API_KEY"),
        (503, "HTTP 503 .*wait until the server is ready"),
    ],
)
def test_a_server_that_refuses_is_told_early(server, monkeypatch, status, told):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(status, {"error": {"message": "no"}}))
    with pytest.raises(ValueError, match=told):
        reachable(Endpoint(url=server.url, model="teacher"))


def test_a_server_that_is_not_there_is_told_early():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(
            ValueError, match=r"cannot be reached \(ConnectError: .*\); start the server, or correct `url`"
        ):
            reachable(Endpoint(url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", model="m"))
