"""Reward functions, one topic a file. Signature as in TRL: `f(completions, **columns) -> list[float | None]`."""
