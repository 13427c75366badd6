"""Owns the compiled building of distance structures: the tree, its boxes, vertex fans, the grid of seeds.

Refuses choices that depend on anything but the mesh: the same mesh gives the same bytes.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math

import numpy as np

from navsrv.anatomy._kernels import FAR, STACK, compiled, nearest_to_point, slot_normal, winding_number


@compiled
def partition_at(order, keys, first, last, nth):
    """Reorder ``order[first:last]`` so that keys left of ``nth`` are not above those right of it (Hoare's select)."""
    low, high = first, last - 1
    while low < high:
        pivot = keys[order[(low + high) // 2]]
        i, j = low, high
        while i <= j:
            while keys[order[i]] < pivot:
                i += 1
            while keys[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if nth <= j:
            high = j
        elif nth >= i:
            low = i
        else:
            return


@compiled
def split_range(order, centres, first, last, unit):
    """Halve ``order[first:last]`` along the longest axis of its centres, the left part in whole ``unit``."""
    axis, longest = 0, -1.0
    for i in range(3):
        low, high = FAR, -FAR
        for j in range(first, last):
            c = centres[i, order[j]]
            low = min(low, c)
            high = max(high, c)
        if high - low > longest:
            axis, longest = i, high - low
    middle = first + unit * (((last - first + unit - 1) // unit) // 2)
    partition_at(order, centres[axis], first, last, middle)
    return middle


@compiled
def build_tree(centres, order, node_child, node_range, leaf_range):
    """Fill an eight-wide tree over triangle ``centres`` (3, M) and reorder ``order`` (M,); return (nodes, leaves).

    A child is a node (>= 0), a leaf (-1 - leaf) or absent (-2**31); it holds ``order[first:last]`` with first and last
    in ``node_range`` (N, 8, 2).  Splits leave whole subtrees full, so that few nodes are needed.
    """
    first, last, number = np.zeros(STACK, np.int64), np.zeros(STACK, np.int64), np.zeros(STACK, np.int64)
    begin, end = np.zeros(8, np.int64), np.zeros(8, np.int64)
    last[0] = centres.shape[1]
    waiting, nodes, leaves = 1, 1, 0
    while waiting > 0:
        waiting -= 1
        node = number[waiting]
        begin[0], end[0] = first[waiting], last[waiting]
        unit = 8
        while unit * 8 < end[0] - begin[0]:
            unit *= 8
        parts = 1
        while parts < 8:
            largest = 0
            for k in range(1, parts):
                if end[k] - begin[k] > end[largest] - begin[largest]:
                    largest = k
            if end[largest] - begin[largest] <= unit:
                break
            middle = split_range(order, centres, begin[largest], end[largest], unit)
            begin[parts], end[parts] = middle, end[largest]
            end[largest] = middle
            parts += 1
        for k in range(parts):
            node_range[node, k, 0], node_range[node, k, 1] = begin[k], end[k]
            if end[k] - begin[k] <= 8:
                leaf_range[leaves, 0], leaf_range[leaves, 1] = begin[k], end[k]
                node_child[node, k] = -1 - leaves
                leaves += 1
            else:
                node_child[node, k] = nodes
                first[waiting], last[waiting], number[waiting] = begin[k], end[k], nodes
                nodes += 1
                waiting += 1
    return nodes, leaves


@compiled
def fill_leaves(order, leaf_range, vertices, triangles, leaf_xyz, leaf_triangle, leaf_vertex, slot_of):
    """Copy triangles into their leaves; a lane without a triangle repeats the first and names triangle -1."""
    for leaf in range(leaf_range.shape[0]):
        first, count = leaf_range[leaf, 0], leaf_range[leaf, 1] - leaf_range[leaf, 0]
        for k in range(8):
            triangle = order[first + (k if k < count else 0)]
            leaf_triangle[leaf, k] = triangle if k < count else -1
            if k < count:
                slot_of[triangle] = leaf * 8 + k
            for corner in range(3):
                v = triangles[triangle, corner]
                leaf_vertex[leaf, corner, k] = v
                for i in range(3):
                    leaf_xyz[leaf, 3 * corner + i, k] = vertices[v, i]


@compiled
def fill_nodes(node_child, node_range, order, vertices, triangles, frame, dipole):
    """Fill the oriented boxes (N, 15, 8) float32 and the dipoles (N, 7, 8) of all children.

    Rows of a box: three axes (mean normal last), then middle and half extent along each.  Axes are shortened by 2e-7,
    so that rounding to float32 never makes a distance along them too long; half extents are rounded up.
    """
    axes = np.empty((3, 3))
    for node in range(node_child.shape[0]):
        for k in range(8):
            dipole[node, 6, k] = -1.0
            if node_child[node, k] == -(2**31):
                for i in range(9):
                    frame[node, i, k] = 0.0
                for i in range(3):
                    frame[node, 9 + i, k], frame[node, 12 + i, k] = 1e18, 0.0
                continue
            first, last = node_range[node, k, 0], node_range[node, k, 1]
            nx = ny = nz = sx = sy = sz = mx = my = mz = area = 0.0
            for j in range(first, last):
                a, b, c = triangles[order[j], 0], triangles[order[j], 1], triangles[order[j], 2]
                ux, uy, uz = (
                    vertices[b, 0] - vertices[a, 0],
                    vertices[b, 1] - vertices[a, 1],
                    vertices[b, 2] - vertices[a, 2],
                )
                vx, vy, vz = (
                    vertices[c, 0] - vertices[a, 0],
                    vertices[c, 1] - vertices[a, 1],
                    vertices[c, 2] - vertices[a, 2],
                )
                px, py, pz = 0.5 * (uy * vz - uz * vy), 0.5 * (uz * vx - ux * vz), 0.5 * (ux * vy - uy * vx)
                weight = math.sqrt(px * px + py * py + pz * pz)
                gx, gy, gz = (
                    vertices[a, 0] + (ux + vx) / 3.0,
                    vertices[a, 1] + (uy + vy) / 3.0,
                    vertices[a, 2] + (uz + vz) / 3.0,
                )
                nx, ny, nz, area = nx + px, ny + py, nz + pz, area + weight
                sx, sy, sz = sx + weight * gx, sy + weight * gy, sz + weight * gz
                mx, my, mz = mx + gx, my + gy, mz + gz
            count = last - first
            if area > 0.0:
                mx, my, mz = sx / area, sy / area, sz / area
            else:
                mx, my, mz = mx / count, my / count, mz / count
            dipole[node, 0, k], dipole[node, 1, k], dipole[node, 2, k] = nx, ny, nz
            dipole[node, 3, k], dipole[node, 4, k], dipole[node, 5, k] = mx, my, mz

            # two directions across the mean normal, then turned to where the patch is longest
            n = math.sqrt(nx * nx + ny * ny + nz * nz)
            if n > 1e-9 * area and n > 0.0:
                nx, ny, nz = nx / n, ny / n, nz / n
            else:
                nx, ny, nz = 0.0, 0.0, 1.0
            sign = 1.0 if nz >= 0.0 else -1.0
            h = -1.0 / (sign + nz)
            ux, uy, uz = 1.0 + sign * nx * nx * h, sign * nx * ny * h, -sign * nx
            vx, vy, vz = nx * ny * h, sign + ny * ny * h, -ny
            cuu = cuv = cvv = r2 = 0.0
            for j in range(first, last):
                for corner in range(3):
                    a = triangles[order[j], corner]
                    x, y, z = vertices[a, 0] - mx, vertices[a, 1] - my, vertices[a, 2] - mz
                    p, q = x * ux + y * uy + z * uz, x * vx + y * vy + z * vz
                    cuu, cuv, cvv = cuu + p * p, cuv + p * q, cvv + q * q
                    r2 = max(r2, x * x + y * y + z * z)
            dipole[node, 6, k] = r2
            angle = 0.5 * math.atan2(2.0 * cuv, cuu - cvv)
            cosine, sine = math.cos(angle), math.sin(angle)
            axes[0, 0], axes[0, 1], axes[0, 2] = (
                cosine * ux + sine * vx,
                cosine * uy + sine * vy,
                cosine * uz + sine * vz,
            )
            axes[1, 0], axes[1, 1], axes[1, 2] = (
                cosine * vx - sine * ux,
                cosine * vy - sine * uy,
                cosine * vz - sine * uz,
            )
            axes[2, 0], axes[2, 1], axes[2, 2] = nx, ny, nz
            for i in range(3):
                for m in range(3):
                    frame[node, 3 * i + m, k] = axes[i, m] * (1.0 - 2e-7)
                    axes[i, m] = frame[node, 3 * i + m, k]
            l0 = l1 = l2 = FAR
            h0 = h1 = h2 = -FAR
            for j in range(first, last):
                for corner in range(3):
                    a = triangles[order[j], corner]
                    x, y, z = vertices[a, 0], vertices[a, 1], vertices[a, 2]
                    p = axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z
                    q = axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z
                    r = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z
                    l0, l1, l2 = min(l0, p), min(l1, q), min(l2, r)
                    h0, h1, h2 = max(h0, p), max(h1, q), max(h2, r)
            for i in range(3):
                low = l0 if i == 0 else (l1 if i == 1 else l2)
                high = h0 if i == 0 else (h1 if i == 1 else h2)
                frame[node, 9 + i, k] = 0.5 * (low + high)
                half = max(high - frame[node, 9 + i, k], frame[node, 9 + i, k] - low)
                frame[node, 12 + i, k] = half * (1.0 + 2e-7) + 1e-9


@compiled
def vertex_fans(vertices, triangles, neighbour, normals, valence, corner_of):
    """Add angle-weighted normals (V, 3) and return whether every vertex has one closed fan of triangles.

    ``neighbour`` (M, 3) is the triangle across edge (corner, corner + 1), -1 for none.
    """
    for t in range(triangles.shape[0]):
        for corner in range(3):
            a, b, c = triangles[t, corner], triangles[t, (corner + 1) % 3], triangles[t, (corner + 2) % 3]
            ux, uy, uz = (
                vertices[b, 0] - vertices[a, 0],
                vertices[b, 1] - vertices[a, 1],
                vertices[b, 2] - vertices[a, 2],
            )
            vx, vy, vz = (
                vertices[c, 0] - vertices[a, 0],
                vertices[c, 1] - vertices[a, 1],
                vertices[c, 2] - vertices[a, 2],
            )
            nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
            double_area = math.sqrt(nx * nx + ny * ny + nz * nz)
            weight = math.atan2(double_area, ux * vx + uy * vy + uz * vz)
            weight /= double_area if double_area > 1e-290 else 1.0
            normals[a, 0] += weight * nx
            normals[a, 1] += weight * ny
            normals[a, 2] += weight * nz
            valence[a] += 1
            corner_of[a] = 3 * t + corner
    for vertex in range(vertices.shape[0]):
        if valence[vertex] == 0:
            continue
        t, corner, steps = corner_of[vertex] // 3, corner_of[vertex] % 3, 0
        begin = t
        while steps <= valence[vertex]:
            t = neighbour[t, corner]
            if t < 0:
                return False
            corner = 0 if triangles[t, 0] == vertex else (1 if triangles[t, 1] == vertex else 2)
            steps += 1
            if t == begin:
                break
        if t != begin or steps != valence[vertex]:
            return False
    return True


@compiled
def fill_grid(node_frame, node_child, leaf_xyz, origin, cell, grid_slot, grid_distance):
    """Fill a nearest slot and a lower bound of the unsigned distance (mm) for the centre of each cell."""
    stack_node, stack_lb, lane = np.empty(STACK, np.int64), np.empty(STACK), np.empty(8)
    zero, seed, limit = np.int64(0), np.int64(0), np.int64(1 << 40)
    for i in range(grid_slot.shape[0]):
        for j in range(grid_slot.shape[1]):
            for m in range(grid_slot.shape[2]):
                k = m if (i + j) % 2 == 0 else grid_slot.shape[2] - 1 - m
                x, y, z = origin[0] + (i + 0.5) * cell, origin[1] + (j + 0.5) * cell, origin[2] + (k + 0.5) * cell
                d2, seed, _, _ = nearest_to_point(
                    node_frame, node_child, leaf_xyz, zero, x, y, z, seed, FAR, limit, stack_node, stack_lb, lane
                )
                grid_slot[i, j, k] = seed
                grid_distance[i, j, k] = math.sqrt(d2)


@compiled
def label_pieces(neighbour, label, waiting):
    """Label triangles (M,) by connected piece across edges; return the number of pieces."""
    pieces = 0
    label[:] = -1
    for start in range(neighbour.shape[0]):
        if label[start] >= 0:
            continue
        label[start] = pieces
        waiting[0], height = start, 1
        while height > 0:
            height -= 1
            t = waiting[height]
            for e in range(3):
                o = neighbour[t, e]
                if o >= 0 and label[o] < 0:
                    label[o] = pieces
                    waiting[height] = o
                    height += 1
        pieces += 1
    return pieces


@compiled
def sides_agree(slots, step_mm, node_child, leaf_xyz, leaf_triangle, dipole, stack_node):
    """Return whether the winding number is 0 just outside and 1 just inside of each triangle of ``slots``."""
    zero = np.int64(0)
    for slot in slots:
        leaf, k = slot // 8, slot % 8
        n = slot_normal(leaf_xyz, slot)
        for side in (-1.0, 1.0):
            x = (leaf_xyz[leaf, 0, k] + leaf_xyz[leaf, 3, k] + leaf_xyz[leaf, 6, k]) / 3.0 + side * step_mm * n[0]
            y = (leaf_xyz[leaf, 1, k] + leaf_xyz[leaf, 4, k] + leaf_xyz[leaf, 7, k]) / 3.0 + side * step_mm * n[1]
            z = (leaf_xyz[leaf, 2, k] + leaf_xyz[leaf, 5, k] + leaf_xyz[leaf, 8, k]) / 3.0 + side * step_mm * n[2]
            w = winding_number(node_child, leaf_xyz, leaf_triangle, dipole, zero, zero, x, y, z, stack_node)
            if math.fabs(w - (0.5 - 0.5 * side)) > 0.3:
                return False
    return True
