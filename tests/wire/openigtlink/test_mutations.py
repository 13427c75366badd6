from __future__ import annotations

import tracemalloc
from collections import Counter
from types import ModuleType

import numpy as np

from navsrv.wire import openigtlink as igtl


def test_mutated_messages_are_read_or_refused_and_nothing_else(fuzz: ModuleType) -> None:
    rng, seeds = np.random.default_rng(20261), [igtl.encode(message) for message in fuzz.messages()]
    outcomes = Counter(fuzz.trial(rng, seeds, 1 << 16).partition(":")[0] for _ in range(20_000))
    assert outcomes["read"] > 1000, "the mutations no longer get past the check sum"
    assert len(outcomes) > 15, "the mutations no longer reach the parsers"


def test_mutated_messages_take_no_memory_beyond_the_cap(fuzz: ModuleType) -> None:
    rng, seeds, cap = np.random.default_rng(7), [igtl.encode(message) for message in fuzz.messages()], 1 << 16
    fuzz.trial(rng, seeds, cap)
    tracemalloc.start()
    try:
        for _ in range(2_000):
            fuzz.trial(rng, seeds, cap)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * cap
