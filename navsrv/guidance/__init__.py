"""What the operator must be *told*: clearance, trajectory, doubt, alarms.  Refuses waiting, sockets and wall time."""
