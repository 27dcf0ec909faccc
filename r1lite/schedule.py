"""Which problem is asked when: a function of the seed alone, so that a resumed run goes on where it was."""

import random


def schedule(n_problems: int, per_rollout: int, n_rollouts: int, seed: int) -> list[int]:
    """Which problem is asked when: `n_rollouts` runs of `per_rollout` indices, no index twice in a run.

    Every pass over the problems is a new permutation; what is left of one when it no longer fills a rollout is dropped.
    The order depends on nothing but the arguments, which is what makes a resumed run go on where it was.
    """
    if n_problems < per_rollout:
        raise ValueError(
            f"a rollout asks {per_rollout} different problems (prompts_per_step x updates_per_rollout), "
            f"but there are only {n_problems}"
        )
    rng = random.Random(f"schedule/{seed}")
    order: list[int] = []
    while len(order) < n_rollouts * per_rollout:
        permutation = rng.sample(range(n_problems), n_problems)
        order += permutation[: n_problems // per_rollout * per_rollout]
    return order[: n_rollouts * per_rollout]


def mixed_schedule(sizes: list[int], per_rollout: list[int], n_rollouts: int, seed: int) -> list[int]:
    """Indices into sets of problems laid one after the other, of each set so many a rollout, each in its own order."""
    orders = [schedule(size, count, n_rollouts, seed) for size, count in zip(sizes, per_rollout, strict=True)]
    first = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        start + index
        for rollout in range(n_rollouts)
        for start, order, count in zip(first, orders, per_rollout, strict=True)
        for index in order[rollout * count : (rollout + 1) * count]
    ]
