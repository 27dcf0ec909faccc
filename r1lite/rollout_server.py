"""vLLM on GPUs of its own, for trainers elsewhere: a server of rollouts.

serving.py starts it as `python -m r1lite.rollout_server FOLDER NAME PEER`, and vllm_servers.py talks with it. It takes
a free port of that of this machine's addresses which faces PEER, and writes both to FOLDER/NAME.json. Who connects says
the token that is in FOLDER, and then sends the orders of vllm_loop.py in lines of JSON, the first of which makes vLLM
start. Nothing is encrypted, so it belongs in a network of one's own.
"""

import hmac
import signal
import socket
import sys
from pathlib import Path
from queue import Queue
from threading import Thread

from r1lite.launch import SIGNALS
from r1lite.pool import end_with_parent
from r1lite.records import write_json
from r1lite.serving import TOKEN
from r1lite.vllm_loop import Said, hear, serve, tell
from r1lite.vllm_process import END

GREETING = 20.0  # seconds that one may take to say the token
LONGEST = 200  # characters of one


def accept(listener: socket.socket, token: str, orders: "Queue[Said]") -> None:
    while True:
        connection, _ = listener.accept()
        Thread(target=talk, args=(connection, token, orders), daemon=True).start()


def talk(connection: socket.socket, token: str, orders: "Queue[Said]") -> None:
    """Take orders from one that knows the token, and hang up on all others."""
    with connection, connection.makefile("r") as lines, connection.makefile("w") as results:
        connection.settimeout(GREETING)
        try:
            said = lines.readline(LONGEST)
        except (OSError, UnicodeDecodeError):
            return
        if not hmac.compare_digest(said.strip().encode(), token.encode()):
            return
        connection.settimeout(None)
        tell(results, END)
        hear(lines, results, orders)


def address_towards(peer: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing
        host: str = probe.getsockname()[0]
    return host


def main(folder: Path, name: str, peer: str) -> None:
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # also in vLLM's own processes; `r1lite` ends it when it is time
    token = (folder / TOKEN).read_text()
    host = address_towards(peer)
    listener = socket.create_server((host, 0))
    orders: Queue[Said] = Queue()
    Thread(target=accept, args=(listener, token, orders), daemon=True).start()
    write_json(folder / f"{name}.json", {"host": host, "port": listener.getsockname()[1]})
    serve(orders)


if __name__ == "__mp_main__":  # a process of vLLM's: it would outlive a server killed by force, and hold its GPU
    end_with_parent()
if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
