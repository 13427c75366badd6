"""What a pose *is*: frames, rigid transforms with covariance, samples with age, errors.  Refuses any I/O."""
