"""A small patient for tests: a bone with a nerve beside it, on a CT of 26 x 24 x 20 voxels."""

import numpy as np

from navsrv.anatomy.build import CaseDraft, StructureDraft
from navsrv.anatomy.case import Kind, Plan, Volume
from navsrv.anatomy.surfaces import label_surface

SPACING_MM = (1.0, 1.0, 2.0)
ORIGIN_MM = (-10.0, 40.0, -300.0)
BONE, NERVE = 3, 7


def small_labels() -> Volume:
    voxels = np.zeros((20, 24, 26), np.uint8)
    voxels[4:16, 6:18, 4:12] = BONE
    voxels[4:16, 10:14, 16:20] = NERVE
    return Volume(voxels, ORIGIN_MM, SPACING_MM)


def small_ct() -> Volume:
    labels = small_labels()
    hu = np.select([labels.voxels == BONE, labels.voxels == NERVE], [700, 40], -80).astype(np.int16)
    return Volume(hu, labels.origin_mm, labels.spacing_mm)


def small_draft(name: str = "small") -> CaseDraft:
    labels = small_labels()
    return CaseDraft(
        name=name,
        structures=(
            StructureDraft("Sacrum", Kind.BONE, label_surface(labels, BONE).mesh, 0.4, BONE),
            StructureDraft("S1 root", Kind.CRITICAL, label_surface(labels, NERVE).mesh, 0.4, NERVE, "Sacrum", 8.0, 4.0),
        ),
        provenance={"sources": [{"file": "made up"}]},
        ct=small_ct(),
        labels=labels,
        plan=Plan(np.array([-2.0, 60.0, -280.0]), np.array([-2.0, 52.0, -280.0]), 3.0),
        primitives={"balls": [1.5]},
    )
