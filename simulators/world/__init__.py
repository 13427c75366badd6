"""The truth of the simulated room: patient, needle, imaging.  Refuses sockets, clocks and any code that it judges."""
