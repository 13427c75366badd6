"""Drivers of trackers, C-arms and O-arms, and the health of each source; knows nothing of the patient."""
