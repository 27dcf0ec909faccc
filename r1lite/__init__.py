"""r1lite: DeepSeek-R1-Zero, R1 and its distillations as one pipeline that a person can run, change and trust."""

__version__ = "0.1.0"
