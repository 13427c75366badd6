// Owns: fetching the case, its meshes and its volume, and unpacking their bytes.
// Refuses: to go on with bytes that do not add up.

export async function fetchCase() {
  const response = await fetch("/api/case");
  if (!response.ok) throw new Error(`GET /api/case answered ${response.status}`);
  return response.json();
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`GET ${url} answered ${response.status}`);
  return response.arrayBuffer();
}

/** {vertices: Float32Array (N*3, LPS mm), indices: Uint32Array (M*3)} */
export async function fetchMesh(url) {
  const bytes = await fetchBytes(url);
  const [vertexCount, triangleCount] = bytes.byteLength >= 8 ? new Uint32Array(bytes, 0, 2) : [0, 0];
  const expected = 8 + vertexCount * 12 + triangleCount * 12;
  if (bytes.byteLength !== expected) throw new Error(`${url}: ${bytes.byteLength} bytes, its header says ${expected}`);
  return {
    vertices: new Float32Array(bytes, 8, vertexCount * 3),
    indices: new Uint32Array(bytes, 8 + vertexCount * 12, triangleCount * 3),
  };
}

/** The volume's description with `voxels` (Int16Array, i fastest) added. */
export async function fetchVolume(info) {
  const bytes = await fetchBytes(info.url);
  const expected = info.shape[0] * info.shape[1] * info.shape[2] * 2;
  if (bytes.byteLength !== expected) throw new Error(`${info.url}: ${bytes.byteLength} bytes, its shape says ${expected}`);
  return { ...info, voxels: new Int16Array(bytes) };
}

/** What the screen of each C-arm with a video shows: `{source, showing, reason, picture_ns}`. */
export async function fetchVideos() {
  const response = await fetch("/api/video");
  return response.ok ? response.json() : [];
}

/** The newest X-ray's description, or null when there is none. */
export async function fetchLatestFluoro() {
  const response = await fetch("/api/fluoro/latest");
  return response.ok ? response.json() : null;
}
