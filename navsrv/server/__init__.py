"""When and to whom: configuration, the real-time loop, displays, session, DICOM intake, recorder, command line.

The only room with asyncio, threads or processes.  Refuses to decide anything clinical.
"""
