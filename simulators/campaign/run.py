"""Owns the doing of many insertions: one by one in processes or on a Dask cluster, each line kept as it comes.

Results are lines of ``runs.jsonl``; a campaign that was killed goes on where its last whole line stands.  The worst are
made again from their seeds, with a recording.  Refuses to interpret: that is the report's.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from navsrv.anatomy.builtin import ensure_case
from navsrv.kernel.errors import InputError
from navsrv.pipeline.inputs import Input, input_time_ns
from navsrv.pipeline.pipeline import Output
from navsrv.pipeline.setup import Setup
from simulators.campaign.insertion import EPOCH_NS, SOURCE, Insertion, Room, make_insertion
from simulators.campaign.spec import Spec, load_spec
from simulators.campaign.subset import subset_case
from simulators.campaign.verdict import FrameLog, judge, tip_errors
from simulators.composition import Composition, VirtualRecording
from simulators.virtual import VirtualShell
from simulators.world.insertion import NeedlePlan
from simulators.world.solids import TubeStructures
from simulators.world.truth import Truth

CHUNK: Final = 5
RUNS: Final = "runs.jsonl"
AFTER_NS: Final = 16_000_000
"""The run ends before silence would make the last pose stale."""
PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know: the spec's file and the case's folder; every worker must be able to read both."""

    spec_file: str
    case_folder: str


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A composition with the room of its insertions."""

    spec: Spec
    composition: Composition
    room: Room


@lru_cache(maxsize=2)
def stage_of(order: Order) -> Stage:
    """Return the stage of an order; made once in each process."""
    spec_file = Path(order.spec_file)
    spec, _ = load_spec(spec_file)
    declared = f"trackers.{SOURCE}.rate_hz={spec.rate_hz}"
    composition = Composition.load(spec_file.parent / spec.config, Path(order.case_folder), [declared])
    return Stage(spec, composition, room_of(composition.setup, composition))


def room_of(setup: Setup, composition: Composition) -> Room:
    """Return the plan and the critical structures of a composition; InputError without a plan or a reference."""
    case = composition.case
    if case.plan is None:
        raise InputError(f"{case.folder}: the case has no plan; a campaign needs its entry and target")
    if setup.reference is None:
        raise InputError("config: no reference is configured; a campaign needs one")
    names = tuple(s.name for s in setup.structures if s.kind == "critical")
    plan = NeedlePlan(case.plan.entry_ct_mm, case.plan.target_ct_mm)
    return Room(plan, TubeStructures.of(Truth.from_case(case.folder), names), setup.tools[0], setup.reference.transform)


def prepare(spec: Spec, spec_file: Path, progress: Callable[[str, float], None]) -> Order:
    """Return the order of a spec; its case is made if it is not there."""
    folder = ensure_case(spec.case, progress)
    if spec.structures:
        folder = subset_case(folder, spec.structures, progress)
    return Order(str(spec_file.resolve()), str(folder))


def play(stage: Stage, insertion: Insertion, recording: VirtualRecording | None = None) -> tuple[FrameLog, int]:
    """Run an insertion through a fresh pipeline; return what was shown and when it ended (ns)."""
    log = FrameLog(stage.room.structures.names)

    def kept(item: Input, outputs: Sequence[Output]) -> None:
        log.take(item, outputs)
        assert recording is not None
        recording.take(EPOCH_NS + input_time_ns(item), item, outputs)

    end_ns = int(insertion.received_ns[-1]) + AFTER_NS
    VirtualShell(stage.composition.pipeline(), log.take if recording is None else kept).run(insertion.inputs, end_ns)
    return log, end_ns


def run_seed(order: Order, seed: int, recording: Path | None = None) -> dict[str, Any]:
    """Return the line of results of one insertion; with a path, its recording and its truth are written there too."""
    began = time.process_time()
    stage = stage_of(order)
    insertion = make_insertion(stage.spec, stage.room, seed)
    if recording is None:
        log, end_ns = play(stage, insertion)
    else:
        with stage.composition.record_to(recording) as file:
            log, end_ns = play(stage, insertion, file)
        write_truth(recording.with_suffix(".truth.npz"), insertion, stage.room)
    line = judge(log, insertion, stage.composition.setup, end_ns) | tip_errors(log, insertion)
    return line | {"cost_s": round(time.process_time() - began, 4)}


def write_truth(path: Path, insertion: Insertion, room: Room) -> None:
    """Write the truth beside a recording: true tips, hubs and clearances at the stamps of the poses."""
    np.savez_compressed(
        path,
        pose_time_ns=insertion.stamps_ns,
        tip_ct_mm=insertion.tips_ct_mm,
        hub_ct_mm=insertion.hubs_ct_mm,
        structures=np.array(room.structures.names),
        clearance_mm=insertion.clearance_mm,
    )


def run_seeds(order: Order, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the lines of several insertions; what a worker does at a time."""
    gc.disable()
    lines = [run_seed(order, seed) for seed in seeds]
    gc.collect()
    return lines


def _chunks(seeds: Sequence[int]) -> Iterator[tuple[int, ...]]:
    iterator = iter(seeds)
    while chunk := tuple(islice(iterator, CHUNK)):
        yield chunk


def _die_with_parent() -> None:
    """Let the kernel end this worker when the campaign is killed; a worker alone would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _one(task: tuple[Order, tuple[int, ...]]) -> list[dict[str, Any]]:
    return run_seeds(*task)


def on_processes(order: Order, seeds: Sequence[int], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of seeds as they are done, by so many processes of this machine."""
    if workers == 1:
        for chunk in _chunks(seeds):
            yield from run_seeds(order, chunk)
        return
    with get_context("spawn").Pool(workers, _die_with_parent) as pool:
        for lines in pool.imap_unordered(_one, ((order, chunk) for chunk in _chunks(seeds))):
            yield from lines


def on_dask(order: Order, seeds: Sequence[int], address: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of seeds as they are done, by the workers of an existing Dask cluster.

    Raises
    ------
    InputError
        The extra is not installed, or nobody answers at the address.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise InputError("--scheduler: Dask is not installed; install navsrv[dask], or use --workers") from None
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"--scheduler {address}: no Dask scheduler answers ({error}); expected tcp://HOST:PORT"
        ) from None
    with client, client.as_current():
        futures = client.map(_one, [(order, chunk) for chunk in _chunks(seeds)], pure=False)
        for future in as_completed(futures):
            yield from future.result()


class Results:
    """The lines of a campaign on disk: a head that says which spec, then one line for each insertion."""

    def __init__(self, folder: Path, digest: str, resume: bool) -> None:
        self.path = folder / RUNS
        self.lines: dict[int, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            if not resume:
                raise InputError(f"{self.path}: there is a campaign already; give --resume, or another --out")
            whole = self._read(digest)
            os.truncate(self.path, whole)
            self._file = self.path.open("a", encoding="utf-8")
        else:
            self._file = self.path.open("w", encoding="utf-8")
            self._write({"format": "navsrv-campaign", "version": 1, "spec_sha256": digest})

    def _read(self, digest: str) -> int:
        """Read what is there; return how many bytes are whole lines."""
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        try:
            head, *lines = [json.loads(line) for line in raw[:whole].splitlines()]
            if head["format"] != "navsrv-campaign":
                raise ValueError(head["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: not the results of a campaign ({error}); choose another --out") from None
        if head["spec_sha256"] != digest:
            raise InputError(f"{self.path}: results of another spec; choose another --out, or give that spec")
        self.lines = {line["seed"]: line for line in lines}
        return whole

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Keep one line."""
        self.lines[line["seed"]] = line
        self._write(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
