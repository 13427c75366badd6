"""The patient: CT and segmentation intake, surfaces, distance structures, the case on disk.  Refuses live state."""
