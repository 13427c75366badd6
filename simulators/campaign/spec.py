"""Owns what a campaign's TOML says: which case and configuration, how many insertions, what is drawn from where."""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from navsrv.kernel.checking import Checker, rule
from navsrv.kernel.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Distribution:
    """A number drawn for each insertion.

    ``constant``: a.  ``uniform``: from a to b.  ``normal``: mean a, standard deviation b.  ``lognormal``: median a, and
    b of its logarithm.  ``student``: scale a, b degrees of freedom (heavy tails).
    """

    kind: Literal["constant", "uniform", "normal", "lognormal", "student"]
    a: float
    b: float = 0.0

    def draw(self, rng: np.random.Generator) -> float:
        """Return one number."""
        match self.kind:
            case "constant":
                return self.a
            case "uniform":
                return float(rng.uniform(self.a, self.b))
            case "normal":
                return float(rng.normal(self.a, self.b))
            case "lognormal":
                return float(self.a * math.exp(self.b * rng.normal()))
            case "student":
                return float(self.a * rng.standard_t(self.b))


def _constant(value: float) -> Any:
    return rule(factory=lambda: Distribution("constant", value))


@dataclass(frozen=True, slots=True)
class Motion:
    """How the hand moves.  Shares are between 0 and 1; a drift goes off the plan towards a critical structure.

    ``heeds_share``: how many operators stop while nothing is shown, once it has lasted; the others go on blindly.
    """

    heeds_share: float = rule(1.0, low=0.0, high=1.0)
    drift_share: float = rule(0.6, low=0.0, high=1.0)
    closest_mm: Distribution = _constant(3.0)
    """True clearance that a drift is led to, without tremor; below 0 it touches."""
    advance_mm_s: Distribution = _constant(8.0)
    drift_mm_s: Distribution = _constant(5.0)
    tremor_mm: Distribution = _constant(0.2)
    bend_mm: Distribution = _constant(0.0)
    """How far the tip has left the straight line at the target's depth; grows with the square of the depth."""
    hold_s: Distribution = _constant(0.5)
    breathing_mm: Distribution = _constant(0.0)


@dataclass(frozen=True, slots=True)
class Errors:
    """What is wrong without anybody knowing.  Each direction is drawn too; ``*_dof`` are those of Student's t."""

    registration_mm: Distribution = _constant(0.5)
    """Scale, along each axis, of the error of the registration at the target."""
    registration_deg: Distribution = _constant(0.2)
    tip_mm: Distribution = _constant(0.2)
    axis_deg: Distribution = _constant(0.1)
    noise_mm: Distribution = _constant(0.15)
    """Scale of one pose's noise along each axis; heavy tails come with ``noise_dof``."""
    noise_deg: Distribution = _constant(0.03)
    noise_dof: float = rule(5.0, low=2.1, high=1e6)
    depth_ratio: float = rule(1.0, low=1.0, high=10.0)
    """How much noisier positions are along the camera's depth than across it."""
    bias_mm: Distribution = _constant(0.0)
    """A systematic error of each body's position in this corner of the tracker's volume."""
    segmentation_mm: Distribution = _constant(0.0)
    """How much larger a structure really is than its surface says."""
    latency_ms: Distribution = _constant(14.0)
    jitter_ms: float = rule(0.5, low=0.0, high=100.0)
    clock_offset_s: Distribution = _constant(0.0)


@dataclass(frozen=True, slots=True)
class Sight:
    """Losses of the line of sight, per minute: blips below a second, and longer ones; and single missing exposures."""

    blips_per_min: float = rule(0.0, low=0.0, high=60.0)
    losses_per_min: float = rule(0.0, low=0.0, high=60.0)
    missing_share: float = rule(0.0, low=0.0, high=0.5)


@dataclass(frozen=True, slots=True)
class Registered:
    """What the server is told of the registration: the sigmas of its covariance, about the target."""

    sigma_mm: float = rule(0.6, low=0.0, high=20.0)
    sigma_deg: float = rule(0.25, low=0.0, high=20.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole campaign.

    ``case`` is a built-in case or a folder; with ``structures`` only those of it are kept, in a case of its own that
    recordings point to.  ``config`` is a server configuration, relative to the spec, which is told ``rate_hz``;
    insertion number ``i`` has the seed ``first_seed + i``.
    """

    case: str
    config: str
    insertions: int = rule(low=1, high=10_000_000)
    structures: tuple[str, ...] = ()
    first_seed: int = rule(1, low=0, high=2**52)
    rate_hz: float = rule(60.0, low=1.0, high=1000.0)
    worst_kept: int = rule(10, low=0, high=1000)
    motion: Motion = rule(factory=Motion)
    errors: Errors = rule(factory=Errors)
    sight: Sight = rule(factory=Sight)
    registered: Registered = rule(factory=Registered)


def load_spec(path: Path) -> tuple[Spec, str]:
    """Return a campaign and the SHA-256 of its text, by which results of another spec are told apart.

    Raises
    ------
    ConfigError
        With every fault: file, key, what is wrong, what would be right.
    """
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({error}); expected a campaign in TOML"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: not TOML: {error}; expected a campaign as examples/campaign.toml"]) from None
    checker = Checker(str(path))
    spec = checker.table(Spec, data, "")
    if spec is not None:
        _cross_check(checker, spec)
    if checker.faults or spec is None:
        raise ConfigError(checker.faults)
    return spec, hashlib.sha256(raw).hexdigest()


def _cross_check(checker: Checker, spec: Spec) -> None:
    for table, section in (("motion", spec.motion), ("errors", spec.errors)):
        for name in section.__dataclass_fields__:
            value = getattr(section, name)
            if not isinstance(value, Distribution):
                continue
            key = f"{table}.{name}"
            if value.kind == "uniform" and value.b < value.a:
                checker.fault(key, f"uniform from {value.a:g} to {value.b:g}", "b not below a")
            if value.kind == "student" and value.b < 1.0:
                checker.fault(key, f"student with {value.b:g} degrees of freedom", "b of at least 1")
            if value.kind in ("normal", "lognormal") and value.b < 0.0:
                checker.fault(key, f"b {value.b:g} is negative", "a standard deviation")
    for name in ("advance_mm_s", "drift_mm_s"):
        value = getattr(spec.motion, name)
        if value.kind in ("normal", "student") or min(value.a, value.b if value.kind == "uniform" else value.a) <= 0:
            checker.fault(f"motion.{name}", "may be zero or negative", "a positive constant, uniform or lognormal")
