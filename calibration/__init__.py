"""Solvers that relate frames, each with residuals and a refusal; does no I/O."""
