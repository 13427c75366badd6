"""Owns the demo: the whole room on this machine, every part a process of its own, speaking over real sockets.

The tracker, the C-arm, the O-arm and the server are started; an operator, simulated here, spins the O-arm, looks at the
proposed registration, accepts it, and inserts the needle.  At the end the figures are taken from what a display
received and from the simulator's truth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, REFERENCE, Rigid
from navsrv.wire.guidance import decode_frame
from simulators.arguments import Parser, number, whole
from simulators.judging import Received, Shaft, judge, registration_error_mm
from simulators.room import START_TIMEOUT_S, DemoFailed, Room
from simulators.world.scene import read_truth_log
from simulators.world.truth import Truth

LOOK_S: Final = 2.0
"""How long the simulated operator looks at a proposed registration, headless."""
BROWSER_LOOK_S: Final = 6.0
SETTLE_S: Final = 0.6
"""How long the tracker has followed the reference before the O-arm spins: an exposure without it is not used."""
REGISTRATION_TIMEOUT_S: Final = 120.0


def tell_person(text: str) -> None:
    """Say what happens, on standard error when a person watches."""
    if sys.stderr.isatty():
        print(f"demo: {text}", file=sys.stderr, flush=True)


def run_story(room: Room, url: str) -> None:
    """Connect, image, register, insert, once."""
    watcher, args = room.watcher, room.args
    assert watcher is not None
    assert room.commander is not None
    if watcher.wait(30.0, lambda f: f.state == "UNREGISTERED" and f.pose_time_ns is not None) is None:
        raise DemoFailed("the server sent no frame of a connected, unregistered tool within 30 s")
    tell_person(f"server ready after {time.monotonic() - room.started:.1f} s; display at {url}")
    room.oarm.wait_for("ready", START_TIMEOUT_S)
    room.oarm.wait_for("event", 30.0)
    time.sleep(SETTLE_S)
    tell_person("O-arm spins; its volume goes to the server")
    room.oarm.tell(do="spin")
    room.mark("O-arm spins")
    proposed = watcher.wait(REGISTRATION_TIMEOUT_S, lambda f: f.proposal is not None)
    if proposed is None or proposed.proposal is None or proposed.proposal.id is None:
        raise DemoFailed(f"no registration was proposed within {REGISTRATION_TIMEOUT_S:g} s")
    proposal = proposed.proposal
    room.mark("registration proposed")
    tell_person(f"registration {proposal.id} proposed: {proposal.verdict}, predicted TRE {proposal.tre_mm:.2f} mm")
    look_s = LOOK_S if args.headless else BROWSER_LOOK_S
    watcher.wait(look_s, lambda f: f.registration.state == "accepted")
    if watcher.newest is None or watcher.newest.registration.state != "accepted":
        room.commander.ask("accept_registration", id=proposal.id)
    room.accepted = room.commander.ask("describe_registration", id=proposal.id)
    room.carm.wait_for("ready", START_TIMEOUT_S)
    for view in ("ap", "lateral"):
        room.carm.tell(do="shoot", view=view)
    room.tracker.tell(do="insert")
    room.mark("insertion begins")
    tell_person("registration accepted; the needle goes in")
    seconds = room.tracker_story_s + 1.0
    watcher.wait(seconds if args.seconds is None else min(seconds, args.seconds))


def figures(room: Room, case: Case) -> dict[str, Any]:
    """Return the figures of a finished run; the processes have ended, so that log and recording are whole."""
    log = read_truth_log(room.truth_file)
    needle = next(t for t in room.scenery["tools"] if t["name"] == "Needle")
    limits = {
        s["name"]: (s["caution_mm"], s["warning_mm"]) for s in room.scenery["structures"] if s["kind"] == "critical"
    }
    shaft = Shaft(needle["length_mm"], needle["diameter_mm"] / 2.0)
    received = [Received(at, decode_frame(payload)) for at, payload in room.received]
    accepted = room.accepted
    assert case.plan is not None
    error_mm, error_deg = registration_error_mm(
        Rigid.from_matrix(CT, REFERENCE, np.array(accepted["T_ct_from_ref"]).reshape(4, 4)),
        log.T_ct_from_ref,
        case.plan.target_ct_mm,
    )
    first_alert = next(
        (
            r.arrival_ns
            for r in received
            if any(a.structure is not None and a.condition in LEVELS for a in r.frame.alarms)
        ),
        None,
    )
    return {
        "case": case.name,
        "seed": room.args.seed,
        "registration": {
            "error_mm": round(error_mm, 4),
            "error_deg": round(error_deg, 4),
            "predicted_tre_mm": round(accepted["tre_mm"], 4),
            "verdict": accepted["verdict"],
        },
        **judge(received, log, Truth.from_case(case.folder), limits, shaft),
        "first_alert_s": None if first_alert is None else round(first_alert / 1e9 - room.started, 2),
        "timeline_s": room.timeline_s,
        "alarms": _alarms(received),
        "target_reached": any(a.condition == "target_reached" for r in received for a in r.frame.alarms),
        "missed_deadlines": max((r.frame.missed_deadlines for r in received), default=0),
        "recording": room.ready["recording"],
    }


LEVELS: Final = ("caution", "warning", "breach")


def _alarms(received: list[Received]) -> list[dict[str, Any]]:
    """Return each alarm that appeared, in the order of appearing, with its first text and how often it came."""
    found: dict[str, dict[str, Any]] = {}
    present: set[str] = set()
    for item in received:
        for alarm in item.frame.alarms:
            entry = found.setdefault(
                alarm.id, {"id": alarm.id, "priority": alarm.priority, "text": alarm.text, "times": 0}
            )
            entry["times"] += alarm.id not in present
            entry["priority"] = min(entry["priority"], alarm.priority, key=("high", "medium", "low").index)
        present = {alarm.id for alarm in item.frame.alarms}
    return list(found.values())


def arguments() -> Parser:
    """Return the parser of ``navsrv demo``."""
    parser = Parser("demo", "The whole job on simulators over real sockets.", "navsrv demo --headless --json")
    parser.prog = "navsrv demo"
    parser.add_argument(
        "--case", type=Path, metavar="CASE", help="a case folder; navsrv demo takes a built-in's name too (sacrum)"
    )
    parser.add_argument("--headless", action="store_true", help="no browser; end after one insertion")
    parser.add_argument("--seconds", type=number(1.0, 86400.0, "s"), help="cut the insertion short")
    parser.add_argument("--json", action="store_true", help="end with one JSON line of figures")
    parser.add_argument("--seed", type=whole(0, 2**31), default=1, help="decides the whole room (1)")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # when navsrv demo began, monotonic seconds
    parser.add_argument("--speed", type=number(0.5, 5.0), default=1.3, help="how fast the needle's story goes (1.3)")
    return parser


def main(argv: list[str]) -> int:
    """Run the demo; return the exit status."""
    args = arguments().parse_args(argv)
    if args.case is None:
        raise InputError("which case? give --case FOLDER, or run navsrv demo, which makes one")
    case = Case.load(args.case)
    if case.plan is None or case.ct_file is None:
        raise InputError(f"{case.folder}: the demo needs a case with a CT and a plan")
    try:
        with Room(case, args) as room:
            return _run(room, case)
    except DemoFailed as failure:
        print(f"navsrv demo: {failure}", file=sys.stderr)
        return 1


def _run(room: Room, case: Case) -> int:
    room.start()
    url = f"http://127.0.0.1:{room.ready['ports']['http']}"
    if not room.args.headless:
        print(f"navsrv demo: open {url} (research software, not a medical device); Ctrl-C ends", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(url)
    run_story(room, url)
    if not room.args.headless and room.args.seconds is None:
        _again_until_interrupted(room)
    room.stop()
    found = figures(room, case)
    print(json.dumps(found) if room.args.json else summary(found), flush=True)
    return 0


def _again_until_interrupted(room: Room) -> None:
    try:
        while True:
            time.sleep(5.0)
            room.tracker.tell(do="insert")
            time.sleep(room.tracker_story_s + 1.0)
    except (KeyboardInterrupt, BrokenPipeError):
        pass


def summary(found: dict[str, Any]) -> str:
    """Return the figures for a person."""
    registration, latency = found["registration"], found["frame_latency_ms"] or {}
    nothing = {"shown": float("nan"), "true": float("nan")}
    closest = next(iter(found["minimum_clearance_mm"].items()), ("nothing", nothing))
    lines = [
        f"case {found['case']}: registration error {registration['error_mm']:.2f} mm at the target"
        f" (predicted {registration['predicted_tre_mm']:.2f} mm, {registration['verdict']})",
        f"pose to frame: p50 {latency.get('p50', float('nan')):.2f} ms, max {latency.get('max', float('nan')):.2f} ms;"
        f" worst alert {found['worst_alert_latency_ms'] or float('nan'):.2f} ms; late alarms {found['late_alarms']}",
        f"closest: {closest[0]}, {closest[1]['shown']:.1f} mm shown, {closest[1]['true'] or float('nan'):.1f} mm true",
        f"first alert {found['first_alert_s']} s after the start; target reached: {found['target_reached']}",
        *(f"  alarm {a['priority']:<6} x{a['times']}  {a['text']}" for a in found["alarms"]),
        f"recording {found['recording']}",
    ]
    return "\n".join(lines)
