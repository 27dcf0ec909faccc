"""r1lite's vLLM process, with completions as long as a workload says: python bench/forced_vllm.py WORKLOAD"""

import sys
from collections.abc import Iterator
from typing import Any

from workloads import WORKLOADS, Lengths, of_length

from r1lite import vllm_process


def main() -> None:
    lengths, generate = Lengths(WORKLOADS[sys.argv[1]]), vllm_process.generate

    def forced(llm: Any, *given: Any, **named: Any) -> Iterator[Any]:
        real = llm.enqueue

        def enqueue(prompts: list, parameters: list, **more: Any) -> Any:
            wanted = lengths.next(len(prompts))
            if wanted:
                parameters = [of_length(each, length) for each, length in zip(parameters, wanted, strict=True)]
            return real(prompts, parameters, **more)

        llm.enqueue = enqueue
        yield from generate(llm, *given, **named)
        llm.enqueue = real

    vllm_process.generate = forced
    vllm_process.main()


if __name__ == "__main__":
    main()
