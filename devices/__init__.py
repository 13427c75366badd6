"""Whether a source can be *believed*: drivers and their health.  Refuses to know the patient."""
