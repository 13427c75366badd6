"""Owns what a DICOM image object *means*: where its planes lie in the patient, what its numbers are, when it was taken.

``attributes`` reads single values, ``planes`` places slices and frames, ``grid`` makes one volume of them, ``pixels``
decodes.  Refuses files, sockets and anything that must be guessed: every fault is a ``DicomFault`` that says what is
wrong and what would be right.  Whose object it is, and what it is used for, others decide: ``devices`` for what is sent
to the server, ``navsrv.anatomy`` for a case on disk.

Patient coordinates are LPS millimetres (PS3.3 C.7.6.2.1.1), whatever way the patient lies on the table.
"""

from navsrv.wire.dicom.attributes import DicomFault

__all__ = ["DicomFault"]
