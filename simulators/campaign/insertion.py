"""Owns one insertion of a campaign: what is drawn from its seed, where everything truly is, and what the tracker sends.

Two shapes of the needle's way: along the plan to the target (quiet), or off the plan towards a critical structure, to a
drawn clearance, and back.  Truth in bulk, as arrays over the exposures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array, rotation_from_vector
from navsrv.pipeline.inputs import BytesIn, CommandIn, Input, LinkUp, RegistrationIn
from navsrv.pipeline.setup import ToolSetup
from simulators.campaign.spec import Spec
from simulators.packets import encode_poses
from simulators.world.batches import rigid, rotations, rotations_along
from simulators.world.insertion import NeedlePlan
from simulators.world.scene import Breathing, Scene
from simulators.world.solids import TubeStructures

START_NS: Final = 100_000_000
"""The first exposure; before it the link comes up and the registration is accepted."""
EPOCH_NS: Final = 1_700_000_000_000_000_000
"""Wall time at monotonic 0."""
HOVER_MM: Final = 5.0
FARTHEST_DRIFT_MM: Final = 40.0
FIRST_S: Final = 0.3
RETREAT: Final = 2.5
"""How much faster a needle that went astray is drawn back."""
NOTICED_S: Final = 0.7
"""From a loss of sight, which the display shows at once, to a hand that rests."""
SOURCE: Final = "main"

Times = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What all insertions of a campaign share: the plan, the critical structures as solids, the tool as configured."""

    plan: NeedlePlan
    structures: TubeStructures
    tool: ToolSetup
    reference: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """The numbers of one insertion; ``structure`` is None where it goes along the plan."""

    seed: int
    structure: str | None
    goal_mm: float
    advance_mm_s: float
    drift_mm_s: float
    tremor_mm: float
    bend_mm: float
    hold_s: float
    breathing_mm: float
    registration_mm: float
    registration_deg: float
    tip_mm: float
    axis_deg: float
    noise_mm: float
    noise_deg: float
    tool_bias_mm: float
    latency_ms: float
    clock_offset_s: float

    def told(self) -> dict[str, Any]:
        """Return the numbers, rounded, for a line of results."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, eq=False)
class Insertion:
    """One insertion, ready to be played and judged.

    Attributes
    ----------
    exposed_ns, received_ns : (N,)
        Monotonic times of exposure and receipt.
    stamps_ns : (N,)
        By the tracker's clock, as the wire carries them.
    tips_ct_mm, hubs_ct_mm : (N, 3)
        Where the needle's ends truly are.
    clearance_mm : (N, S)
        True clearance of the needle (tip or shaft, the lesser), its structures as large as they really are.
    enlarged_mm : (S,)
        How much larger each structure is than its surface says.
    needle_seen, reference_seen, sent : (N,)
    registration_error_mm : float
        At the target.
    inputs : list
        What the pipeline gets, in order.
    """

    drawn: Drawn
    exposed_ns: Times
    received_ns: Times
    stamps_ns: Times
    tips_ct_mm: Array
    hubs_ct_mm: Array
    clearance_mm: Array
    enlarged_mm: Array
    needle_seen: Flags
    reference_seen: Flags
    sent: Flags
    registration_error_mm: float
    inputs: list[Input]


def make_insertion(spec: Spec, room: Room, seed: int) -> Insertion:
    """Return the insertion of a seed: the same for the same spec, whoever makes it."""
    rng = np.random.default_rng([seed, 0xCA])
    drawn, way = _draw(spec, room, rng, seed)
    period_ns = round(1e9 / spec.rate_hz)
    needle_seen, reference_seen, way_s = _pace(rng, spec, way.duration_s, period_ns / 1e9)
    count = len(way_s)
    t_s = np.arange(count, dtype=np.float64) * (period_ns / 1e9)
    exposed_ns = START_NS + np.arange(count, dtype=np.int64) * period_ns
    rigid_tips: Array = way.tips(way_s) + _tremor(rng, t_s, drawn.tremor_mm)
    axes = room.plan.axis_at(rigid_tips)
    tips = rigid_tips + _bend(rng, room.plan, rigid_tips, axes, drawn.bend_mm)
    hubs = rigid_tips - room.tool.length_mm * axes
    bodies = _bodies(rng, room, drawn, rigid_tips, axes)
    scene = Scene.from_seed(seed, room.plan.target_ct_mm, Breathing(drawn.breathing_mm))
    patient = _patient(scene, t_s)
    T_ct_from_ref = scene.T_ct_from_ref.matrix
    sent = rng.random(count) >= spec.sight.missing_share
    noisy = [_measured(rng, spec, drawn, poses) for poses in (patient @ bodies, patient @ T_ct_from_ref)]
    latency_ns = drawn.latency_ms * 1e6 + rng.exponential(max(spec.errors.jitter_ms, 1e-6) * 1e6, count)
    received_ns = np.maximum.accumulate(exposed_ns + latency_ns.astype(np.int64) + np.arange(count))
    stamps_ns = exposed_ns + EPOCH_NS + round(drawn.clock_offset_s * 1e9)
    enlarged = np.array([spec.errors.segmentation_mm.draw(rng) for _ in room.structures.names])
    shaft = room.structures.shaft_distance(tips, hubs, room.tool.radius_mm)
    clearance = np.minimum(shaft, room.structures.tip_distance(tips)) - enlarged
    estimate, error_mm = _registration(rng, room.plan, drawn, T_ct_from_ref)
    started = _started(spec, room.plan, estimate)
    messages = _messages(room, noisy, stamps_ns, needle_seen, reference_seen)
    reads: list[Input] = [
        BytesIn(SOURCE, at, at + EPOCH_NS, data)
        for at, data, out in zip(received_ns.tolist(), messages, sent.tolist(), strict=True)
        if out
    ]
    return Insertion(
        drawn, exposed_ns, received_ns, stamps_ns, tips, hubs, clearance, enlarged, needle_seen, reference_seen,
        sent, error_mm, started + reads,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """Straight pieces at constant speed: times (K,) and points (K, 3)."""

    times_s: Array
    points_mm: Array

    @property
    def duration_s(self) -> float:
        return float(self.times_s[-1])

    def tips(self, t_s: Array) -> Array:
        return np.stack([np.interp(t_s, self.times_s, self.points_mm[:, i]) for i in range(3)], axis=1)

    @classmethod
    def through(cls, points_mm: list[Array], seconds: list[float]) -> _Way:
        return cls(np.concatenate([[0.0], np.cumsum(seconds)]), np.array(points_mm))


def _draw(spec: Spec, room: Room, rng: np.random.Generator, seed: int) -> tuple[Drawn, _Way]:
    """Draw the insertion; always in the same order, so that a seed means the same for the same spec."""
    motion, errors = spec.motion, spec.errors
    drifts = rng.random() < motion.drift_share
    numbers = {
        "goal_mm": motion.closest_mm.draw(rng),
        "advance_mm_s": motion.advance_mm_s.draw(rng),
        "drift_mm_s": motion.drift_mm_s.draw(rng),
        "tremor_mm": abs(motion.tremor_mm.draw(rng)),
        "bend_mm": motion.bend_mm.draw(rng),
        "hold_s": abs(motion.hold_s.draw(rng)),
        "breathing_mm": abs(motion.breathing_mm.draw(rng)),
        "registration_mm": 0.0,
        "registration_deg": 0.0,
        "tip_mm": abs(errors.tip_mm.draw(rng)),
        "axis_deg": abs(errors.axis_deg.draw(rng)),
        "noise_mm": abs(errors.noise_mm.draw(rng)),
        "noise_deg": abs(errors.noise_deg.draw(rng)),
        "tool_bias_mm": abs(errors.bias_mm.draw(rng)),
        "latency_ms": abs(errors.latency_ms.draw(rng)),
        "clock_offset_s": errors.clock_offset_s.draw(rng),
    }
    shift = np.array([errors.registration_mm.draw(rng) for _ in range(3)])
    turn = np.array([errors.registration_deg.draw(rng) for _ in range(3)])
    numbers["registration_mm"], numbers["registration_deg"] = float(np.linalg.norm(shift)), float(np.linalg.norm(turn))
    plan = room.plan
    hover, entry = plan.point(-HOVER_MM), plan.entry_ct_mm
    leave = float(rng.uniform(0.45, 1.0)) * plan.depth_mm
    found = _astray(room, rng, plan.point(leave), numbers["goal_mm"]) if drifts else None
    start = [HOVER_MM / 25.0, leave / numbers["advance_mm_s"]]
    if found is None:
        whole = [FIRST_S, start[0], plan.depth_mm / numbers["advance_mm_s"], 0.5 + numbers["hold_s"]]
        way = _Way.through([hover, hover, entry, plan.target_ct_mm, plan.target_ct_mm], whole)
        return Drawn(seed=seed, structure=None, **numbers), way
    structure, closest = found
    travel = float(np.linalg.norm(closest - plan.point(leave)))
    away_s = travel / numbers["drift_mm_s"]
    seconds = [FIRST_S, *start, away_s, numbers["hold_s"], away_s / RETREAT, 0.5]
    points = [hover, hover, entry, plan.point(leave), closest, closest, plan.point(leave), plan.point(leave)]
    return Drawn(seed=seed, structure=structure, **numbers), _Way.through(points, seconds)


def _astray(room: Room, rng: np.random.Generator, leave: Array, goal_mm: float) -> tuple[str, Array] | None:
    """Return a critical structure and the point on the way to it where the true clearance first is the goal.

    A structure is drawn, and one of its balls, nearer ones more often; None where none within reach is approached.
    """
    solids = room.structures
    for index in rng.permutation(len(solids.names)).tolist():
        chains = solids.chains[solids.first[index] : solids.first[index + 1]]
        centres = 0.5 * (chains[:, 0:3] + chains[:, 3:6])
        reach = np.linalg.norm(centres - leave, axis=1)
        near = np.flatnonzero(reach < FARTHEST_DRIFT_MM)
        if not len(near):
            continue
        weight = 1.0 / reach[near] ** 4
        end = centres[rng.choice(near, p=weight / weight.sum())]
        way = np.linspace(leave, end, 81)
        hubs = way - room.tool.length_mm * room.plan.axis_at(way)
        clearance = np.minimum(
            solids.shaft_distance(way, hubs, room.tool.radius_mm)[:, index], solids.tip_distance(way)[:, index]
        )
        below = np.flatnonzero(clearance < goal_mm)
        if len(below) and below[0] > 0:
            return solids.names[index], way[below[0]]
    return None


def _tremor(rng: np.random.Generator, t_s: Array, rms_mm: float) -> Array:
    """Return the hand's displacement (N, 3): slow sway and a little tremor at 8 to 11 Hz, as sums of sines."""
    hz = np.concatenate([rng.uniform(0.3, 1.5, (3, 4)), rng.uniform(8.0, 11.0, (3, 1))], axis=1)
    phase = rng.uniform(0.0, 2.0 * np.pi, hz.shape)
    weight = np.array([1.0, 1.0, 1.0, 1.0, 0.15])
    amplitude = weight * rms_mm * np.sqrt(2.0 / 3.0) / np.linalg.norm(weight)
    result: Array = np.sin(2.0 * np.pi * hz * t_s[:, None, None] + phase) @ amplitude
    return result


def _bend(rng: np.random.Generator, plan: NeedlePlan, tips: Array, axes: Array, bend_mm: float) -> Array:
    """Return how far (N, 3) the tip is off the straight axis: sideways, with the square of the depth."""
    side = np.cross(axes, rng.normal(size=3))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    depth = np.clip((tips - plan.entry_ct_mm) @ plan.direction / plan.depth_mm, 0.0, 1.2)
    result: Array = bend_mm * (depth**2)[:, None] * side
    return result


def _bodies(rng: np.random.Generator, room: Room, drawn: Drawn, tips: Array, axes: Array) -> Array:
    """Return ``T_ct_from_body`` (N, 4, 4): where the markers are when the straight needle's tip is at ``tips``.

    The server believes in the calibrated tip and axis; the needle's own are off by what was drawn.
    """
    along = np.eye(3) if room.tool.axis[2] > 1.0 - 1e-9 else rotations_along(room.tool.axis[None])[0]
    tilt = rotation_from_vector(np.radians(drawn.axis_deg) * _direction(rng) * [1.0, 1.0, 0.0])
    R_body_from_tip = along @ tilt
    tip_body = room.tool.tip_mm + drawn.tip_mm * _direction(rng)
    R_ct_from_body = rotations_along(axes, float(rng.uniform(-np.pi, np.pi))) @ R_body_from_tip.T
    return rigid(R_ct_from_body, tips - R_ct_from_body @ tip_body)


def _patient(scene: Scene, t_s: Array) -> Array:
    """Return ``T_tracker_from_ct`` (N, 4, 4) of the breathing patient, bone and reference as one."""
    rest = scene.T_tracker_from_ct
    assert scene.breathing is not None
    rise = scene.breathing.amplitude_mm * (1.0 - np.cos(np.pi * t_s / scene.breathing.period_s) ** 4)
    along = rest.rotation @ np.array([0.0, 1.0, 0.0])
    result = np.tile(rest.matrix, (len(t_s), 1, 1))
    result[:, :3, 3] += rise[:, None] * along
    return result


def _measured(rng: np.random.Generator, spec: Spec, drawn: Drawn, poses: Array) -> Array:
    """Return poses (N, 4, 4) as the tracker measures them: heavy-tailed noise, and a bias of this body here."""
    dof = spec.errors.noise_dof
    turns = rng.standard_t(dof, (len(poses), 3)) * np.radians(drawn.noise_deg)
    scale = drawn.noise_mm * np.array([1.0, 1.0, spec.errors.depth_ratio])
    moves = rng.standard_t(dof, (len(poses), 3)) * scale + drawn.tool_bias_mm * _direction(rng)
    return rigid(poses[:, :3, :3] @ rotations(turns), poses[:, :3, 3] + moves)


def _pace(rng: np.random.Generator, spec: Spec, duration_s: float, period_s: float) -> tuple[Flags, Flags, Array]:
    """Return when needle and reference are seen, and how far along its way (s) the needle is, exposure by exposure.

    An operator who heeds the display stops ``NOTICED_S`` after something was lost, until it is seen again.
    """
    t_s = np.arange(0.0, 1.5 * duration_s + 10.0, period_s)
    needle, reference = _seen(rng, spec, t_s), _seen(rng, spec, t_s)
    going = np.ones(len(t_s), dtype=np.bool_)
    if rng.random() < spec.motion.heeds_share:
        lost = ~(needle & reference)
        noticed = round(NOTICED_S / period_s)
        since_seen = np.arange(len(t_s)) - np.maximum.accumulate(np.where(lost, -1, np.arange(len(t_s))))
        going = since_seen <= noticed
    way_s: Array = np.cumsum(going).astype(np.float64) * period_s
    count = int(np.searchsorted(way_s, duration_s))
    return needle[:count], reference[:count], way_s[:count]


def _seen(rng: np.random.Generator, spec: Spec, t_s: Array) -> Flags:
    """Return when a body is seen: lost for 0.05 to 0.8 s at one rate, for 1 to 2.5 s at another."""
    seen = np.ones(len(t_s), dtype=np.bool_)
    minutes = float(t_s[-1]) / 60.0
    for per_min, short, long in ((spec.sight.blips_per_min, 0.05, 0.8), (spec.sight.losses_per_min, 1.0, 2.5)):
        for _ in range(rng.poisson(per_min * minutes)):
            begin = float(rng.uniform(0.0, t_s[-1]))
            seen &= ~((t_s >= begin) & (t_s < begin + float(rng.uniform(short, long))))
    return seen


def _registration(
    rng: np.random.Generator, plan: NeedlePlan, drawn: Drawn, T_ct_from_ref: Array
) -> tuple[Array, float]:
    """Return the estimate of ``T_ct_from_ref`` (4, 4) and its error (mm) at the target.

    Turned about the target and shifted there, by lengths that were drawn, each in a direction of its own.
    """
    shift = drawn.registration_mm * _direction(rng)
    turn = rotation_from_vector(np.radians(drawn.registration_deg) * _direction(rng))
    error = np.eye(4)
    error[:3, :3], error[:3, 3] = turn, plan.target_ct_mm - turn @ plan.target_ct_mm + shift
    return error @ T_ct_from_ref, drawn.registration_mm


def _started(spec: Spec, plan: NeedlePlan, estimate: Array) -> list[Input]:
    """Return how a session begins: connected, a registration proposed and accepted."""
    at = START_NS // 2
    told = spec.registered
    covariance = covariance_about(plan.target_ct_mm, np.radians(told.sigma_deg), told.sigma_mm)
    numbers = tuple(estimate.ravel().tolist()), tuple(covariance.ravel().tolist())
    tre_mm = float(np.sqrt(3.0) * told.sigma_mm)
    return [
        LinkUp(at, SOURCE),
        RegistrationIn(at + 1, "R1", "drawn", *numbers, tre_mm, "accept", "drawn by the campaign"),
        CommandIn(at + 2, "c1", "accept_registration", {"id": "R1"}, "campaign"),
    ]


def covariance_about(centre_mm: Array, sigma_rad: float, sigma_mm: float) -> Array:
    """Return the (6, 6) covariance, (rotation, translation), of equal independent errors about a centre (3,).

    A turn ``w`` about the centre c moves the origin by ``-w x c``: the translation goes with the turn by ``[c]x``.
    """
    x, y, z = centre_mm.tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    J = np.eye(6)
    J[3:, :3] = cross
    result: Array = J @ np.diag([sigma_rad**2] * 3 + [sigma_mm**2] * 3) @ J.T
    return result


def _messages(room: Room, noisy: list[Array], stamps_ns: Times, needle: Flags, reference: Flags) -> list[bytes]:
    """Return one read for each exposure: needle and reference as one write of the tracker."""
    names = room.tool.transform, room.reference
    seen = [encode_poses(name, poses, stamps_ns) for name, poses in zip(names, noisy, strict=True)]
    both = np.concatenate(seen, axis=1)
    raw, width = both.tobytes(), both.shape[1]
    reads = [raw[i * width : (i + 1) * width] for i in range(len(both))]
    unseen = np.flatnonzero(~(needle & reference))
    nowhere = np.tile(np.eye(4), (len(unseen), 1, 1))
    hidden = [encode_poses(name, nowhere, stamps_ns[unseen], "OUT_OF_VIEW") for name in names]
    for k, i in enumerate(unseen.tolist()):
        of = seen[0][i] if needle[i] else hidden[0][k], seen[1][i] if reference[i] else hidden[1][k]
        reads[i] = of[0].tobytes() + of[1].tobytes()
    return reads


def _direction(rng: np.random.Generator) -> Array:
    v = rng.normal(size=3)
    result: Array = v / np.linalg.norm(v)
    return result
