"""Owns what registrations are really off by: runs of the real code on volumes of a known pose, kept as a small table.

Patients are those that no factor was tuned on, their other bones lie a little otherwise than in the CT, the scanner's
scale is off by 0.2 %, and the volume lies anywhere a C-arm may put it.  ``python -m simulators.coverage.volumes`` makes
``registrations.json`` anew, some seconds a volume.  The coverage study draws from the table: a registration in each of
its trials would take days.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.spatial.transform import Rotation

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, VOLUME, Rigid
from navsrv.kernel.samples import VolumeSample
from navsrv.registration.cbct import PreparedCt, prepare_ct, register_cbct
from simulators.coverage.heldout import TABLE
from simulators.verdict.patients import PELVIS_BONES, Patient, patient
from simulators.verdict.scenes import carry
from simulators.world.imaging import OarmProtocol, reconstruct

PATIENTS: Final = ("sacrum:21", "sacrum:22", "sacrum:23", "spine:31:4", "spine:33:5", "spine:36:6")
RING: Final = (PELVIS_BONES["Ilium left"], PELVIS_BONES["Ilium right"])
SCALE_SIGMA: Final = 0.001
"""Of the volume's size: two scanners' scales differ by 0.2 % at two sigma."""
SHIFT_MM: Final = {"joint": 1.0, "ring": 0.5}
TURN_DEG: Final = {"joint": 2.0, "ring": 0.5}
"""One sigma, each axis, of how the other bones lie otherwise than in the CT: over a disc, and in the pelvic ring."""


def run(name: str, one: Patient, prepared: PreparedCt, seed: int) -> dict[str, Any]:
    """Return one row of the table: a volume of the patient, registered by the real code."""
    rng = np.random.default_rng([97, seed])
    middle = one.centre_ct_mm()
    motions = {}
    for label in one.others:
        joint = "ring" if label in RING else "joint"
        hinge = 0.5 * (one.centre_ct_mm(label) + middle)
        turn = Rotation.from_rotvec(np.radians(rng.normal(0.0, TURN_DEG[joint], 3))).as_matrix()
        motions[label] = Rigid(CT, CT, turn, hinge - turn @ hinge + rng.normal(0.0, SHIFT_MM[joint], 3))
    turn = Rotation.from_rotvec(np.radians(rng.uniform(-12.0, 12.0, 3))).as_matrix()
    truth = Rigid(CT, VOLUME, turn, middle + rng.uniform(-30.0, 30.0, 3))
    protocol = OarmProtocol(noise_hu=float(rng.uniform(30.0, 120.0)), blur_mm=float(rng.uniform(0.4, 1.0)))
    made = reconstruct(carry(one, motions), truth, protocol, rng)
    place = np.diag([1.0 + rng.normal(0.0, SCALE_SIGMA)] * 3 + [1.0]) @ made.index_to_volume_mm
    found = register_cbct(prepared, VolumeSample("OArm", made.voxels, place, None, 0), target_ct_mm=middle)
    assert found.transform.covariance is not None
    difference = found.transform.matrix @ np.linalg.inv(truth.matrix)
    shift = difference[:3, :3] @ middle + difference[:3, 3] - middle
    about = np.eye(6)
    x, y, z = middle
    about[3:, :3] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]  # the shift at p is t + w x p
    covariance = about @ found.transform.covariance @ about.T
    error = [*Rotation.from_matrix(difference[:3, :3]).as_rotvec(), *shift]
    return {
        "patient": name,
        "verdict": found.verdict.value,
        "error": [float(f"{v:.5g}") for v in error],
        "covariance": [float(f"{v:.5g}") for v in covariance.ravel()],
    }


def main(argv: list[str] | None = None) -> int:
    """Make the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulators.coverage.volumes", description=__doc__)
    parser.add_argument("--each", type=int, default=6, help="volumes of each patient (6)")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(PATIENTS):
        one = patient(name)
        prepared = prepare_ct(one.image())
        for k in range(args.each):
            began = time.monotonic()
            try:
                rows.append(run(name, one, prepared, 100 * number + k))
            except RegistrationError as refusal:
                rows.append({"patient": name, "verdict": "refuse", "error": [], "covariance": [], "said": str(refusal)})
            if sys.stderr.isatty():
                done = f"{len(rows)} of {len(PATIENTS) * args.each}"
                print(f"{done}: {name} {rows[-1]['verdict']} in {time.monotonic() - began:.0f} s", file=sys.stderr)
            kept = {"command": "python -m simulators.coverage.volumes", "registrations": rows}
            args.out.write_text(json.dumps(kept, separators=(",", ":")).replace("},{", "},\n{") + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
