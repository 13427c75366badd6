"""From bytes to guidance frames as one pure function of inputs; the only place where devices, registration and
guidance meet.  Refuses sockets and clocks.  The server and the simulators both run it."""
