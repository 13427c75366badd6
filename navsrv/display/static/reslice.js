// Owns: the arithmetic of the CT slices - resampling a plane of the volume, cutting a mesh by a plane.
// Refuses: the DOM and the frame. All positions are LPS mm.

/** The three planes as radiologists look at them: screen right and down as LPS directions, and the letters at the edges. */
export const PLANES = {
  axial: { normal: 2, right: [1, 0, 0], down: [0, 1, 0], letters: ["R", "L", "A", "P"] },
  sagittal: { normal: 0, right: [0, 1, 0], down: [0, 0, -1], letters: ["A", "P", "S", "I"] },
  coronal: { normal: 1, right: [1, 0, 0], down: [0, 0, -1], letters: ["R", "L", "S", "I"] },
};

const OUTSIDE = 0xff120d0a; // ABGR, darker than any tissue

/** A volume ready for resampling: `T_index_from_lps` rows worked out once from spacing, origin and direction. */
export function prepareVolume({ shape, spacing_mm, origin_ct_mm, direction, voxels }) {
  const rows = [0, 1, 2].map((i) => [0, 1, 2].map((a) => direction[3 * a + i] / spacing_mm[i]));
  return { size: [shape[2], shape[1], shape[0]], origin: origin_ct_mm, rows, voxels };
}

/** Grey (ABGR, one 32-bit word) of each stored value, for a window of `width` around `level`, in HU. */
export function greyTable(level, width) {
  const table = new Uint32Array(65536);
  for (let value = -32768; value < 32768; value++) {
    const grey = Math.max(0, Math.min(255, Math.round(((value - level) / width + 0.5) * 255)));
    table[value + 32768] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  return table;
}

/**
 * Fill `pixels` (Uint32Array, n*n, row by row) with the plane through `centre` that spans `fieldMm`; trilinear.
 * Pixels outside the volume are marked dark, never extrapolated.
 */
export function reslice(volume, plane, centre, fieldMm, n, table, pixels) {
  const step = fieldMm / n;
  const { rows, size, origin, voxels } = volume;
  const start = [0, 1, 2].map((a) => centre[a] - origin[a] + (0.5 - n / 2) * step * (plane.right[a] + plane.down[a]));
  const dot = (row, v) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2];
  const [i0, j0, k0] = rows.map((row) => dot(row, start));
  const [iu, ju, ku] = rows.map((row) => dot(row, plane.right) * step);
  const [iv, jv, kv] = rows.map((row) => dot(row, plane.down) * step);
  const [ni, nj, nk] = size;
  const slab = ni * nj;
  for (let y = 0, p = 0; y < n; y++) {
    for (let x = 0; x < n; x++, p++) {
      const i = i0 + x * iu + y * iv;
      const j = j0 + x * ju + y * jv;
      const k = k0 + x * ku + y * kv;
      if (!(i >= 0 && j >= 0 && k >= 0 && i <= ni - 1 && j <= nj - 1 && k <= nk - 1)) {
        pixels[p] = OUTSIDE;
        continue;
      }
      const ia = i | 0, ja = j | 0, ka = k | 0;
      const fi = i - ia, fj = j - ja, fk = k - ka;
      const di = ia < ni - 1 ? 1 : 0, dj = ja < nj - 1 ? ni : 0, dk = ka < nk - 1 ? slab : 0;
      const q = ia + ja * ni + ka * slab;
      const a = voxels[q] + fi * (voxels[q + di] - voxels[q]);
      const b = voxels[q + dj] + fi * (voxels[q + dj + di] - voxels[q + dj]);
      const c = voxels[q + dk] + fi * (voxels[q + dk + di] - voxels[q + dk]);
      const d = voxels[q + dk + dj] + fi * (voxels[q + dk + dj + di] - voxels[q + dk + dj]);
      const e = a + fj * (b - a);
      pixels[p] = table[((e + fk * (c + fj * (d - c) - e)) | 0) + 32768];
    }
  }
}

/** Line segments (flat [x,y,z, x,y,z, ...] in LPS mm) where the mesh meets the plane `coordinate[normal] = at`. */
export function cutMesh({ vertices, indices }, normal, at) {
  const points = [];
  const cross = (a, b) => {
    const va = vertices[a + normal] - at, vb = vertices[b + normal] - at;
    const t = va / (va - vb);
    for (let k = 0; k < 3; k++) points.push(vertices[a + k] + t * (vertices[b + k] - vertices[a + k]));
  };
  for (let m = 0; m < indices.length; m += 3) {
    const a = indices[m] * 3, b = indices[m + 1] * 3, c = indices[m + 2] * 3;
    const sa = vertices[a + normal] > at, sb = vertices[b + normal] > at, sc = vertices[c + normal] > at;
    if (sa === sb && sb === sc) continue;
    if (sa !== sb) cross(a, b);
    if (sb !== sc) cross(b, c);
    if (sc !== sa) cross(c, a);
  }
  return points;
}

/** [[min, max], [min, max], [min, max]] of a mesh's vertices. */
export function boundsOf({ vertices }) {
  const bounds = [0, 1, 2].map(() => [Infinity, -Infinity]);
  for (let v = 0; v < vertices.length; v++) {
    const pair = bounds[v % 3];
    if (vertices[v] < pair[0]) pair[0] = vertices[v];
    if (vertices[v] > pair[1]) pair[1] = vertices[v];
  }
  return bounds;
}
