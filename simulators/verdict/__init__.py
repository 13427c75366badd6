"""Owns the trials that the verdict of a registration is judged by: good cases and bad, none of them tuned on.

Patients (``patients``), X-rays of them with bones moved against each other and calibrations told wrong (``scenes``),
results that are right and results that cannot be (``trials``), and what they add up to (``report``).  The X-rays come
from the simulators' renderer, the truth from how the scene was made; registration sees neither.
"""
