"""r1lite's vLLM process, with completions as long as a workload says: python bench/forced_vllm.py WORKLOAD"""

import sys
from typing import Any

from workloads import WORKLOADS, Lengths, of_length

from r1lite import vllm_loop


def main() -> None:
    from vllm import LLM

    lengths, real = Lengths(WORKLOADS[sys.argv[1]]), LLM.enqueue

    def enqueue(self: Any, prompts: list, parameters: list, **more: Any) -> Any:
        wanted = lengths.next(len(prompts))
        if wanted:
            parameters = [of_length(each, length) for each, length in zip(parameters, wanted, strict=True)]
        return real(self, prompts, parameters, **more)

    LLM.enqueue = enqueue
    vllm_loop.main()


if __name__ == "__main__":
    main()
