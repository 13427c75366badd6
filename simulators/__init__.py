"""Simulated trackers, imaging, patients and faults, which meet the server at the bytes only."""
