"""Owns the playing of a scenario in virtual time: the bytes of its devices, through its faults, into the pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.pipeline.inputs import BytesIn, CommandIn, Input, LinkDown, LinkUp, RegistrationIn, input_time_ns
from navsrv.pipeline.pipeline import Output
from navsrv.wire.guidance import GuidanceFrame
from simulators.fault_line import FaultLine
from simulators.faults import Episode, episodes_of
from simulators.scenario.spec import Scenario
from simulators.scenario.stage import Stage
from simulators.scenario.watched import Shown
from simulators.virtual import VirtualShell

EPOCH_NS: Final = 1_700_000_000_000_000_000
START_NS: Final = 1_000_000_000
SOURCE: Final = "main"
REGISTRATION: Final = "R1"


def play_virtual(stage: Stage, recording: Path | None = None) -> tuple[list[Shown], NDArray[np.int64]]:
    """Return what was shown, and the stamps of the exposures (ns).

    Raises
    ------
    InputError
        The scenario has a fault that only the real server can have.
    """
    scenario = stage.scenario
    if scenario.needs_server is not None:
        raise InputError(f"{scenario.title}: {scenario.needs_server}; run it without --virtual")
    exposed_ns = START_NS + np.round(stage.exposed_s * 1e9).astype(np.int64)
    stamps_ns = exposed_ns + EPOCH_NS
    line = FaultLine(_episodes(scenario))
    inputs = sorted(
        [*_begin(stage), *_commands(scenario), *_stream(stage, line, exposed_ns, stamps_ns)], key=input_time_ns
    )
    shown: list[Shown] = []
    with contextlib.ExitStack() as stack:
        file = None if recording is None else stack.enter_context(stage.composition.record_to(recording))

        def take(item: Input, outputs: Sequence[Output]) -> None:
            at_ns = input_time_ns(item)
            shown.extend(Shown((at_ns - START_NS) / 1e9, o) for o in outputs if isinstance(o, GuidanceFrame))
            if file is not None:
                file.take(EPOCH_NS + at_ns, item, outputs)

        shell = VirtualShell(stage.composition.pipeline(), take, away={SOURCE: line.cuts()})
        shell.run(inputs, START_NS + round(scenario.duration_s * 1e9))
    return [s for s in shown if s.at_s >= 0.0], stamps_ns


def _episodes(scenario: Scenario) -> tuple[Episode, ...]:
    rng = np.random.default_rng([scenario.seed, 0xFA])
    found = episodes_of(scenario.faults, START_NS, scenario.duration_s, rng)
    return tuple(e for e in found if e.order.device == SOURCE)


def _begin(stage: Stage) -> list[Input]:
    """Return how the session begins, a little before the story."""
    at = START_NS - 200_000_000
    begun: list[Input] = [LinkUp(at, SOURCE)]
    if stage.scenario.registered:
        numbers = tuple(stage.T_ct_from_ref.ravel().tolist()), tuple(stage.covariance.ravel().tolist())
        begun.append(
            RegistrationIn(
                at + 1, REGISTRATION, "scenario", *numbers, stage.scenario.registration_mm, "accept", "given"
            )
        )
        begun.append(CommandIn(at + 2, "begin", "accept_registration", {"id": REGISTRATION}, "scenario"))
    return begun


def _commands(scenario: Scenario) -> list[Input]:
    return [
        CommandIn(START_NS + round(c.at_s * 1e9), f"c{i}", c.op, c.args(REGISTRATION), "scenario")
        for i, c in enumerate(scenario.commands)
    ]


def _stream(stage: Stage, line: FaultLine, exposed_ns: NDArray[np.int64], stamps_ns: NDArray[np.int64]) -> list[Input]:
    """Return what the source's connection brings, and when it is cut."""
    scenario = stage.scenario
    latency_ns = round(scenario.tracker.latency_ms * 1e6)
    cuts = line.cuts()
    end_ns = START_NS + round(scenario.duration_s * 1e9)
    inputs: list[Input] = [
        LinkDown(begin, SOURCE, "the device closed the connection") for begin, _ in cuts if begin < end_ns
    ]
    for at_ns, messages in zip((exposed_ns + latency_ns).tolist(), stage.messages(stamps_ns), strict=True):
        if at_ns >= end_ns or any(begin <= at_ns < end for begin, end in cuts):
            continue
        for delivery in line.exposure(at_ns, messages):
            if delivery.at_ns < end_ns:
                inputs.append(BytesIn(SOURCE, delivery.at_ns, delivery.at_ns + EPOCH_NS, delivery.data))
    return inputs
