"""When and to *whom*: the loop, displays, session, recorder and command line.  Refuses to decide anything clinical."""
