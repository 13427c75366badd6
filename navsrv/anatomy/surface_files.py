"""Owns surface files: STL, PLY, OBJ and VTP in, and the same out.  Inside the files numbers are mm.

Refuses surface files whose space is not said, that are open, or not in millimetres.  What is written is LPS and
says so (``SPACE=LPS``), with every digit of float64, but for STL, whose format has float32 only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.surfaces import from_polydata, open_edges, signed_volume_mm3, to_polydata
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, points_ras_from_lps

SPACES: Final = ("LPS", "RAS")
READERS: Final = {
    ".stl": "vtkSTLReader",
    ".ply": "vtkPLYReader",
    ".obj": "vtkOBJReader",
    ".vtp": "vtkXMLPolyDataReader",
}
FORMATS: Final = tuple(suffix[1:] for suffix in READERS)


def read_surface(path: Path, space: str) -> Mesh:
    """Return a surface file (STL, PLY, OBJ, VTP) in LPS mm, turned outward.

    Parameters
    ----------
    path : Path
    space : str
        ``LPS`` or ``RAS``: the space of the file's numbers.  Files seldom say it, so the user must.

    Raises
    ------
    InputError
        Missing, empty, not of a known format, not finite, open, of an extent that is not millimetres, or its own header
        names the other space.
    """
    if space not in SPACES:
        raise InputError(f"{path}: surface: space {space!r}; expected LPS or RAS")
    if not path.is_file():
        raise InputError(f"{path}: surface: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: surface: the file is empty (0 bytes)")
    vertices, triangles, said = _read_polydata(path)
    if said is not None and said != space:
        raise InputError(f"{path}: surface: its header says SPACE={said}, but {space} was given; which one is right?")
    try:
        mesh = Mesh(points_ras_from_lps(vertices) if space == "RAS" else vertices, triangles)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rims = open_edges(mesh)
    if rims:
        raise InputError(f"{path}: surface: open, {rims} edges have no neighbour; expected a closed surface")
    return mesh if signed_volume_mm3(mesh) > 0 else Mesh(mesh.vertices_mm, mesh.triangles[:, ::-1])


def write_surface(mesh: Mesh, path: Path, comment: str) -> None:
    """Write a surface in LPS mm in the format of the path's suffix; ``comment`` goes where the format has room."""
    match path.suffix.lower():
        case ".stl":
            _write_stl(mesh, path, comment)
        case ".ply":
            _write_ply(mesh, path, comment)
        case ".obj":
            _write_obj(mesh, path, comment)
        case ".vtp":
            _write_vtp(mesh, path, comment)
        case suffix:
            raise InputError(f"{path}: surface: unknown format {suffix!r}; expected {', '.join(READERS)}")


def _ascii(text: str) -> str:
    return " ".join(text.encode("ascii", "replace").decode().split())


def _write_stl(mesh: Mesh, path: Path, comment: str) -> None:
    """Binary STL: 80 bytes of header, then for each triangle a normal and three corners, float32, little-endian."""
    corners = mesh.vertices_mm[mesh.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(float).tiny)
    facets = np.zeros(len(corners), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")]))
    facets["normal"], facets["corners"] = normals, corners
    # A header that begins with "solid" would be taken for the text form.
    header = f"SPACE=LPS UNIT=mm {_ascii(comment)}".encode()[:80].ljust(80)
    path.write_bytes(header + np.array(len(facets), "<u4").tobytes() + facets.tobytes())


def _write_ply(mesh: Mesh, path: Path, comment: str) -> None:
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment SPACE=LPS UNIT=mm {_ascii(comment)}\n"
        f"element vertex {len(mesh.vertices_mm)}\nproperty double x\nproperty double y\nproperty double z\n"
        f"element face {len(mesh.triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.triangles), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    faces["count"], faces["corners"] = 3, mesh.triangles
    path.write_bytes(header.encode() + mesh.vertices_mm.astype("<f8").tobytes() + faces.tobytes())


def _write_obj(mesh: Mesh, path: Path, comment: str) -> None:
    lines = [f"# SPACE=LPS UNIT=mm {_ascii(comment)}"]
    lines += [f"v {x!r} {y!r} {z!r}" for x, y, z in mesh.vertices_mm.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.triangles + 1).tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _write_vtp(mesh: Mesh, path: Path, comment: str) -> None:
    from vtkmodules.vtkCommonCore import vtkStringArray
    from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

    polydata = to_polydata(mesh)
    space: Any = vtkStringArray()  # as 3D Slicer reads and writes it; the array itself is base64 in the file
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    polydata.GetFieldData().AddArray(space)
    writer: Any = vtkXMLPolyDataWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(polydata)
    if not writer.Write():
        raise InputError(f"{path}: cannot be written")
    head, _, rest = path.read_bytes().partition(b"\n")
    said = f"<!-- SPACE=LPS UNIT=mm {_ascii(comment).replace('--', '- -')} -->".encode()
    path.write_bytes(b"\n".join((head, said, rest)))


def _space_in_header(path: Path) -> str | None:
    """Return the space that a file names in its first bytes, ``SPACE=LPS``, as 3D Slicer and this software write it."""
    with path.open("rb") as file:
        head = file.read(512).upper()
    for space in SPACES:
        if f"SPACE={space}".encode() in head:
            return space
    return None


def _read_polydata(path: Path) -> tuple[Array, NDArray[np.int32], str | None]:
    """Return vertices, triangles, and the space that the file names, if it does."""
    import vtkmodules.vtkIOGeometry as io_geometry
    import vtkmodules.vtkIOPLY as io_ply
    import vtkmodules.vtkIOXML as io_xml
    from vtkmodules.vtkCommonCore import vtkObject
    from vtkmodules.vtkFiltersCore import vtkTriangleFilter

    name = READERS.get(path.suffix.lower())
    if name is None:
        raise InputError(f"{path}: surface: unknown format {path.suffix!r}; expected {', '.join(READERS)}")
    reader = next(getattr(m, name) for m in (io_geometry, io_ply, io_xml) if hasattr(m, name))()
    shown = vtkObject.GetGlobalWarningDisplay()
    vtkObject.GlobalWarningDisplayOff()  # VTK complains on the terminal and goes on; the result is judged below
    try:
        reader.SetFileName(str(path))
        triangulate: Any = vtkTriangleFilter()
        triangulate.PassVertsOff()
        triangulate.PassLinesOff()
        triangulate.SetInputConnection(reader.GetOutputPort())
        triangulate.Update()
    finally:
        vtkObject.SetGlobalWarningDisplay(shown)
    vertices, triangles = from_polydata(triangulate.GetOutput())
    if len(triangles) == 0:
        raise InputError(f"{path}: surface: no triangles in it; is it really {path.suffix.lower()}?")
    named = triangulate.GetOutput().GetFieldData().GetAbstractArray("SPACE")
    said = named.GetValue(0) if named is not None and named.GetNumberOfValues() else None
    return vertices, triangles, said if said in SPACES else _space_in_header(path)
