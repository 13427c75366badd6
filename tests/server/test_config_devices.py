"""The configuration of imaging devices and probes as a site writes it: what is wrong, and what would be right."""

from pathlib import Path

import pytest

from navsrv.kernel.errors import ConfigError
from navsrv.server.config import load_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TURNED = "[[0,-1,0,5],[1,0,0,6],[0,0,1,7],[0,0,0,1]]"
BENT = "[[0,-1,0,5],[1,0.2,0,6],[0,0,1,7],[0,0,0,1]]"

FAULTS = {
    "no such tracker": (
        ["imaging.carm.tracker=polaris"],
        "imaging.carm.tracker: 'polaris' is not configured; expected one of main",
    ),
    "a body that is a tool": (
        ["imaging.carm.pose=ReferenceToTracker"],
        "imaging.carm.pose: 'ReferenceToTracker' is that of tools.Reference; expected a body of its own",
    ),
    "another frame": (
        ["imaging.carm.pose=CarmBodyToRoom"],
        "imaging.carm.pose: 'CarmBodyToRoom' is tracked in room, the tools in tracker; expected all",
    ),
    "no name of a pose": (
        ["imaging.carm.pose=gantry"],
        "imaging.carm.pose: 'gantry'; expected a name such as 'CarmToTracker'",
    ),
    "body and encoders": (
        ['imaging.carm.encoders.device="/dev/null"'],
        "imaging.carm.tracker: given beside encoders; expected the one or the other",
    ),
    "an offset that bends": (
        [f"imaging.carm.T_pose_from_image={BENT}"],
        "imaging.carm.T_pose_from_image: not a rigid motion; expected four rows of four numbers, the last 0, 0, 0, 1",
    ),
    "a detector of a volume": (
        ["imaging.carm.kind=volume"],
        'imaging.carm.T_carm_from_image: the detector of a volume; expected kind = "projection"',
    ),
    "a detector told twice": (
        ["imaging.carm.detector=ImageToCarm"],
        "imaging.carm.T_carm_from_image: given beside detector; expected the one or the other",
    ),
    "two offsets": (
        [
            "dicom.port=0",
            "imaging.carm.connect=dicom",
            "imaging.carm.dicom.pose_of=equipment",
            f"imaging.carm.dicom.T_pose_from_equipment={TURNED}",
        ],
        "imaging.carm.T_pose_from_image: given beside dicom.T_pose_from_equipment; expected the one or the other",
    ),
    "a probe of no tracker": (
        ["probes.Nerve.device=Thermo", "probes.Nerve.tracker=other"],
        "probes.Nerve.tracker: 'other' is not configured; expected one of main",
    ),
    "a probe of a tracker that pushes": (
        ["probes.Nerve.device=Thermo", "probes.Nerve.tracker=main", "trackers.main.connect=listener"],
        "probes.Nerve.tracker: 'main' pushes to the devices port; expected no such key",
    ),
    "frozen at once": (["trackers.main.frozen_ms=5"], "trackers.main.frozen_ms: 5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_what_would_be_right(fault: str) -> None:
    overrides, expected = FAULTS[fault]
    with pytest.raises(ConfigError) as error:
        load_config(EXAMPLES / "fluoroscopy_tracked.toml", overrides)
    assert any(expected in said for said in error.value.faults), error.value.faults


OTHERS = ("bead_phantom.toml", "campaign.toml")
"""Examples that are no server's configuration."""


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml") if path.name not in OTHERS))
def test_every_example_is_right(name: str) -> None:
    load_config(EXAMPLES / name)
