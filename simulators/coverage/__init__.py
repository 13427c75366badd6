"""Owns the study of coverage: how often the bounds that the server promises hold in a room that errs in its own way.

``world`` makes the errors, ``trial`` calibrates, registers and approaches with the real code, ``statistics`` says how
often the truth was beyond the bound, ``main`` runs it and writes docs/coverage.md.  ``heldout`` is the table of
registrations that it draws from, ``volumes`` makes it.
"""
