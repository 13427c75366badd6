"""The real-time loop, display hub, session, recorder and command line: when and to *whom*.  Refuses clinical decisions."""
