"""Completions of a model that is served elsewhere: vLLM, SGLang or a hosted API, in OpenAI's words over HTTP.

A sample is a request of its own, so each has its own seed and finish reason, and a crash loses none that is finished.
Whatever a server sends is text from a stranger: limited in size, checked for its form, and never more than text.
"""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from r1lite.engines import Sampling
from r1lite.records import seed_from
from r1lite.stages.config import Strict

if TYPE_CHECKING:
    import ssl

    import httpx

ATTEMPTS = 8  # at one request; before each but the first a wait of
FIRST_DELAY = 1.0  # seconds, twice as long each time, up to
MOST_DELAY = 60.0
CONNECT = 20.0  # seconds until a server that says nothing is taken to be away
MOST_WAITING = 64  # finished samples, or
SECONDS = 3.0  # after which they are handed over
MOST_BYTES = 64 * 2**20  # of an answer
MOST_WORDS = 300  # characters of a server's message
PASSING = (408, 409, 425, 429)  # and all from 500: what may go well another time
Wanted = tuple[Any, int, int]  # a rendered prompt, its index, and the number of the sample
URL = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[^\s?#]*)?", re.ASCII)


class Endpoint(Strict):
    """A served model. Its key is in the environment variable that `key` names, and nowhere else.

    Where that variable is not set, or `key` is null, no key is sent. What a request leaves out, such as top_k, is as
    the server has it; vLLM takes that from the model's generation_config.json unless it is started with
    `--generation-config vllm`.
    """

    url: str = Field(description="where the API is, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="the name that the server gives the model")
    concurrent: int = Field(32, gt=0, description="requests at once")
    requests_per_minute: int | None = Field(None, gt=0)
    timeout: float = Field(600, gt=0, description="seconds that one request may take")
    key: str | None = Field("OPENAI_API_KEY", description="the environment variable that holds the key")

    @field_validator("url")
    @classmethod
    def _is_base(cls, url: str) -> str:
        if not URL.fullmatch(url):
            raise ValueError("no base url of an API; write one such as http://127.0.0.1:8000/v1, with no key in it")
        return url.rstrip("/")

    @field_validator("key")
    @classmethod
    def _is_a_name(cls, key: str | None) -> str | None:
        if key is not None and not re.fullmatch("[A-Z][A-Z0-9_]*", key):
            raise ValueError("no name of an environment variable (in capitals); the key itself belongs in no recipe")
        return key


@dataclass(frozen=True)
class Served:
    """One completion of the prompt with this index.

    `number` counts the samples of a prompt and `seed` follows from it. `tokens` and `finish_reason` ("stop", "length")
    are what the server says, None where it does not.
    """

    index: int
    number: int
    text: str
    tokens: int | None
    finish_reason: str | None
    seed: int


class Passing(Exception):
    """What may go well another time: its kind, what happened, and the seconds that the server asks to wait."""

    def __init__(self, kind: str, what: str, wait: float = 0.0) -> None:
        super().__init__(f"{kind}: {what}" if what else kind)
        self.kind, self.wait = kind, wait


class EndpointEngine:
    """Asks an endpoint from a thread of its own, so requests go on while whoever asked works on what has come.

    `retries` counts by kind what had to be asked again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises ValueError where the key would go over the net in the clear."""
        authorization(endpoint)
        self.endpoint, self.retries = endpoint, Counter[str]()
        self.pace = Pace(endpoint.requests_per_minute)
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self.runner.get_loop()
        self.thread = Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def stream(self, prompts: Iterable[tuple[Any, Iterable[int]]], sampling: Sampling) -> Iterator[list[Served]]:
        """Samples in the order that they are finished in; of each prompt, those with the numbers that stand beside it.

        Whoever goes on after a crash gives the same prompts and the numbers that are missing: a seed follows from
        sampling.seed, the place of the prompt in the list and the number. Raises ValueError at once when the server
        refuses a request; RuntimeError when one has failed ATTEMPTS times, after those that were on their way.
        """
        if sampling.top_k:
            raise ValueError(f"top_k {sampling.top_k}: OpenAI's API does not have it; set it where the model is served")
        wanted: list[Wanted] = [
            (prompt, index, number) for index, (prompt, numbers) in enumerate(prompts) for number in numbers
        ]
        finished: Queue[Served | None] = Queue()
        work = asyncio.run_coroutine_threadsafe(self._ask_all(wanted, sampling, finished), self.loop)
        work.add_done_callback(lambda _: finished.put(None))
        try:
            yield from in_batches(finished)
            work.result()  # raises what has ended it early
        finally:
            work.cancel()  # whoever asked has failed, and does not want the rest

    def close(self) -> None:
        """Drop what is still asked, and hang up: servers then stop sampling it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.runner.close()

    async def _ask_all(self, wanted: list[Wanted], sampling: Sampling, finished: "Queue[Served | None]") -> None:
        import httpx

        waiting, failed, trusted = iter(wanted), list[Passing](), httpx.create_ssl_context()

        async def work() -> None:
            # A client of its own for each: the time that httpx takes to find a connection grows with their number.
            async with open_client(self.endpoint, trusted) as client:
                for each in waiting:  # of which all workers take
                    try:
                        finished.put(await self._ask_again(client, each, sampling, failed))
                    except Passing as error:
                        failed.append(error)
                    if failed:
                        return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.endpoint.concurrent, len(wanted))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if failed:
            slower = "; set a lower `requests_per_minute` or `concurrent`" if failed[0].kind == "HTTP 429" else ""
            raise RuntimeError(
                f"{self.endpoint.url} has failed {ATTEMPTS} times, at last with {failed[0]}{slower}. What was finished "
                "is kept, and the same command goes on from there"
            )

    async def _ask_again(
        self, client: "httpx.AsyncClient", wanted: Wanted, sampling: Sampling, failed: list[Passing]
    ) -> Served:
        """Ask until there is an answer; no more than ATTEMPTS times, and not again when another request has failed."""
        prompt, index, number = wanted
        seed = seed_from(f"{sampling.seed}/{index}/{number}")
        body = {
            "model": self.endpoint.model,
            "prompt" if isinstance(prompt, str) else "messages": prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        for attempt in range(1, ATTEMPTS + 1):
            await self.pace.turn()
            try:
                text, tokens, finish_reason = await ask(client, self.endpoint, body)
                return Served(index, number, text, tokens, finish_reason, seed)
            except Passing as error:
                if attempt == ATTEMPTS or failed:
                    raise
                self.retries[error.kind] += 1
                await asyncio.sleep(delay(attempt, error.wait))
        raise AssertionError("the last attempt returns or raises")


class Pace:
    """Lets requests start, evenly spaced, no more than so many a minute."""

    def __init__(self, per_minute: int | None) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.free = 0.0  # when the next may start

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self.free)
        self.free = start + self.gap
        await asyncio.sleep(start - now)


def reachable(endpoint: Endpoint) -> None:
    """Raises ValueError where nothing answers, the key is refused, or the server lists models and not this one."""
    asyncio.run(reach(endpoint))


async def reach(endpoint: Endpoint) -> None:
    import httpx

    try:
        async with open_client(endpoint) as client, asyncio.timeout(CONNECT):
            response, content = await fetch(client, "GET", "models")
            if response.status_code == 404:  # not every server tells
                return
            if not response.is_success:
                raise ValueError(await refusal(client, endpoint, response, content))
    except (httpx.RequestError, TimeoutError) as error:
        why = plain(endpoint, f"{type(error).__name__}: {error}")
        raise ValueError(f"{endpoint.url} cannot be reached ({why}); start the server, or correct `url`") from None
    names = names_in(content)
    if names and endpoint.model not in names:
        raise ValueError(
            f"{endpoint.url} does not serve {endpoint.model}; set `model` to what it serves: "
            f"{plain(endpoint, ', '.join(names))}"
        )


def open_client(endpoint: Endpoint, trusted: "ssl.SSLContext | bool" = True) -> "httpx.AsyncClient":
    import httpx

    return httpx.AsyncClient(
        base_url=endpoint.url,
        headers=authorization(endpoint),
        timeout=httpx.Timeout(None, connect=CONNECT),  # of a whole request: the caller's
        verify=trusted,
        follow_redirects=False,  # the key is for this server only
    )


def authorization(endpoint: Endpoint) -> dict[str, str]:
    """The header with the key, if there is one. Raises ValueError where it cannot or should not be sent."""
    key = secret(endpoint)
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):  # a library's error would quote all of it
        raise ValueError(f"the environment variable {endpoint.key} holds no key: it has spaces or special characters")
    host = urlsplit(endpoint.url).hostname or ""
    if endpoint.url.startswith("http:") and not is_loopback(host):
        raise ValueError(
            f"the key in {endpoint.key} would go to {host} in the clear, where others can read it; use https, a tunnel "
            "to 127.0.0.1, or `key: null` for a server that asks for none"
        )
    return {"Authorization": f"Bearer {key}"}


def secret(endpoint: Endpoint) -> str:
    return os.environ.get(endpoint.key, "").strip() if endpoint.key else ""


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # it is a name
        return host == "localhost"


async def fetch(
    client: "httpx.AsyncClient", method: str, path: str, body: dict[str, Any] | None = None
) -> tuple["httpx.Response", bytes]:
    """An answer and its content, no longer than MOST_BYTES."""
    content = bytearray()
    async with client.stream(method, path, json=body) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MOST_BYTES:
                raise ValueError(f"{client.base_url}{path} sends more than {MOST_BYTES:,} bytes: no server of a model")
    return response, bytes(content)


async def ask(
    client: "httpx.AsyncClient", endpoint: Endpoint, body: dict[str, Any]
) -> tuple[str, int | None, str | None]:
    """Text, tokens and finish reason of one completion. Raises Passing, or ValueError where asking again is no use."""
    import httpx

    path = "completions" if "prompt" in body else "chat/completions"
    try:
        async with asyncio.timeout(endpoint.timeout):
            response, content = await fetch(client, "POST", path, body)
    except TimeoutError:
        raise Passing("timeout", f"no answer in {endpoint.timeout:g} s") from None
    except httpx.RequestError as error:
        raise Passing(type(error).__name__, plain(endpoint, str(error))) from None
    status = response.status_code
    if status in PASSING or status >= 500:
        wait = seconds_until(response.headers.get("retry-after", ""))
        raise Passing(f"HTTP {status}", plain(endpoint, message_in(content)), wait)
    if not response.is_success:
        raise ValueError(await refusal(client, endpoint, response, content))
    answer = choice_in(endpoint, content)
    try:
        text, finish_reason = text_of(answer["choices"][0])
    except (LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{endpoint.url}/{path} does not answer as OpenAI's API does; `url` has to be that of a server that does. "
            f"It sends: {plain(endpoint, json.dumps(answer['choices'][0]))}"
        ) from None
    if finish_reason in ("abort", "error"):  # how servers call what they have not finished
        raise Passing(f"finish_reason {finish_reason}", plain(endpoint, text))
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return text, tokens if isinstance(tokens, int) else None, finish_reason


def choice_in(endpoint: Endpoint, content: bytes) -> dict[str, Any]:
    """An answer that has a choice. Gateways send others when what is behind them fails, so those are worth a retry."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise Passing("no JSON", plain(endpoint, content.decode(errors="replace"))) from None
    if not (isinstance(answer, dict) and isinstance(answer.get("choices"), list) and answer["choices"]):
        raise Passing("no choices", plain(endpoint, message_in(content)))
    return answer


def text_of(choice: Any) -> tuple[str, str | None]:
    """What a choice says, in the tags of a model that thinks where the server has taken them off; and why it ended.

    Any error of a lookup or type means that this is no choice of OpenAI's API.
    """
    finish_reason = choice.get("finish_reason")
    if "message" not in choice:
        text = choice["text"]
    else:
        message = choice["message"]
        text = message["content"] or ""  # null where the model has said nothing, or only thought
        thought = message.get("reasoning_content") or message.get("reasoning")
        if thought:
            cut_off = finish_reason == "length" and not text
            text = "<think>" + thought + ("" if cut_off else "</think>" + text)
    if not isinstance(text, str) or not isinstance(finish_reason, str | None):
        raise TypeError
    return without_surrogates(text), finish_reason and without_surrogates(finish_reason)


def without_surrogates(text: str) -> str:
    """JSON can hold halves of a character, which no file can."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


async def refusal(client: "httpx.AsyncClient", endpoint: Endpoint, response: "httpx.Response", content: bytes) -> str:
    """What to tell about a request that the server refuses, and what to do."""
    status = response.status_code
    if status in (401, 403) and secret(endpoint):
        remedy = f"set the environment variable {endpoint.key} to a key that it takes"
    elif status in (401, 403):
        remedy = f"set the environment variable {endpoint.key}" if endpoint.key else "name the key's variable in `key`"
    elif status == 404:
        names = plain(endpoint, ", ".join(await served_names(client))) or "it does not tell; most urls end in /v1"
        remedy = f"correct `url`, or `model` (here {endpoint.model}) to one that it serves: {names}"
    elif response.has_redirect_location:
        remedy = f"write as `url` where it redirects to: {plain(endpoint, response.headers['location'])}"
    elif status >= 500:
        remedy = "wait until the server is ready; its own log says what is wrong"
    else:
        remedy = "change what it does not take, in the recipe or where the model is served"
    said = plain(endpoint, message_in(content)) or "nothing more"
    return f"{response.url} answers HTTP {status} ({said}); {remedy}"


async def served_names(client: "httpx.AsyncClient") -> list[str]:
    import httpx

    try:
        async with asyncio.timeout(CONNECT):
            return names_in((await fetch(client, "GET", "models"))[1])
    except (httpx.RequestError, TimeoutError):
        return []


def names_in(content: bytes) -> list[str]:
    """The models that an answer to GET /models lists; none where it has another form."""
    try:
        return [str(each["id"]) for each in json.loads(content)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


def message_in(content: bytes) -> str:
    """The words of an error where they stand as OpenAI's API puts them, else all."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return content.decode(errors="replace")


def plain(endpoint: Endpoint, text: str) -> str:
    """A stranger's words for an error message: short, on one line, nothing that moves a terminal, never the key."""
    hidden = text.replace(secret(endpoint) or "\0", "***")
    return " ".join("".join(c if c.isprintable() else " " for c in hidden[: MOST_WORDS * 10]).split())[:MOST_WORDS]


def delay(attempt: int, wait: float) -> float:
    """Seconds before the next attempt: what the server asks for, and a random part, so that not all come at once."""
    return min(MOST_DELAY, max(0.0, wait) + FIRST_DELAY * 2.0 ** (attempt - 1) * random.uniform(0.5, 1))


def seconds_until(retry_after: str) -> float:
    """What a Retry-After header says in seconds, or as a date; 0 where it says neither."""
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def in_batches(finished: "Queue[Served | None]") -> Iterator[list[Served]]:
    """All up to None: at most MOST_WAITING at a time, and none waits much longer than SECONDS."""
    ended = False
    while not ended:
        batch: list[Served] = []
        deadline = time.monotonic() + SECONDS
        while len(batch) < MOST_WAITING and not ended:
            try:
                served = finished.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            ended = served is None
            batch += [served] if served is not None else []
        if batch:
            yield batch
