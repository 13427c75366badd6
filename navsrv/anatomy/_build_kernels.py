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
def split_range(order, centres, first, last):
    """Halve ``order[first:last]`` along the longest axis of its centres; the left part is a multiple of 8 long."""
    axis, longest = 0, -1.0
    for i in range(3):
        low, high = FAR, -FAR
        for j in range(first, last):
            c = centres[i, order[j]]
            low = min(low, c)
            high = max(high, c)
        if high - low > longest:
            axis, longest = i, high - low
    eights = (last - first + 7) // 8
    middle = first + 8 * (eights // 2)
    partition_at(order, centres[axis], first, last, middle)
    return middle


@compiled
def build_tree(centres, node_child, leaf_range):
    """Fill the children of an eight-wide tree over triangle ``centres`` (3, M); return (order, nodes, leaves).

    A child is a node (>= 0), a leaf (-1 - leaf) or absent (a node number of -2**31).
    """
    count = centres.shape[1]
    order = np.arange(count).astype(np.int32)
    first = np.zeros(STACK, np.int64)
    last = np.zeros(STACK, np.int64)
    number = np.zeros(STACK, np.int64)
    begin = np.zeros(8, np.int64)
    end = np.zeros(8, np.int64)
    last[0] = count
    waiting, nodes, leaves = 1, 1, 0
    while waiting > 0:
        waiting -= 1
        node = number[waiting]
        begin[0], end[0] = first[waiting], last[waiting]
        parts = 1
        while parts < 8:
            largest = 0
            for k in range(1, parts):
                if end[k] - begin[k] > end[largest] - begin[largest]:
                    largest = k
            if end[largest] - begin[largest] <= 8:
                break
            middle = split_range(order, centres, begin[largest], end[largest])
            begin[parts], end[parts] = middle, end[largest]
            end[largest] = middle
            parts += 1
        for k in range(parts):
            if end[k] - begin[k] <= 8:
                leaf_range[leaves, 0], leaf_range[leaves, 1] = begin[k], end[k]
                node_child[node, k] = -1 - leaves
                leaves += 1
            else:
                node_child[node, k] = nodes
                first[waiting], last[waiting], number[waiting] = begin[k], end[k], nodes
                nodes += 1
                waiting += 1
    return order, nodes, leaves


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
def fill_nodes(node_child, leaf_xyz, leaf_triangle, box, dipole):
    """Fill boxes (N, 6, 8) and dipoles (N, 7, 8) from the leaves up; children have higher numbers than parents."""
    for node in range(node_child.shape[0] - 1, -1, -1):
        for k in range(8):
            child = node_child[node, k]
            for i in range(3):
                box[node, i, k], box[node, 3 + i, k] = np.inf, -np.inf
            dipole[node, 6, k] = -1.0
            if child == -(2**31):
                continue
            area = 0.0
            for i in range(6):
                dipole[node, i, k] = 0.0
            for c in range(8):
                if child < 0:
                    leaf = -1 - child
                    if leaf_triangle[leaf, c] < 0:
                        continue
                    u = leaf_xyz[leaf, 3:6, c] - leaf_xyz[leaf, 0:3, c]
                    v = leaf_xyz[leaf, 6:9, c] - leaf_xyz[leaf, 0:3, c]
                    n = 0.5 * np.array((u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]))
                    a = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
                    for i in range(3):
                        dipole[node, i, k] += n[i]
                        for corner in range(3):
                            x = leaf_xyz[leaf, 3 * corner + i, c]
                            dipole[node, 3 + i, k] += a * x / 3.0
                            box[node, i, k] = min(box[node, i, k], x)
                            box[node, 3 + i, k] = max(box[node, 3 + i, k], x)
                    area += a
                elif node_child[child, c] != -(2**31):
                    a = math.fabs(dipole[child, 6, c])
                    for i in range(3):
                        dipole[node, i, k] += dipole[child, i, c]
                        dipole[node, 3 + i, k] += a * dipole[child, 3 + i, c]
                        box[node, i, k] = min(box[node, i, k], box[child, i, c])
                        box[node, 3 + i, k] = max(box[node, 3 + i, k], box[child, 3 + i, c])
                    area += a
            for i in range(3):
                middle = 0.5 * (box[node, i, k] + box[node, 3 + i, k])
                dipole[node, 3 + i, k] = dipole[node, 3 + i, k] / area if area > 0.0 else middle
            dipole[node, 6, k] = area
    for node in range(node_child.shape[0]):
        for k in range(8):
            if node_child[node, k] == -(2**31):
                continue
            r2 = 0.0
            for i in range(3):
                centre = dipole[node, 3 + i, k]
                r = max(centre - box[node, i, k], box[node, 3 + i, k] - centre)
                r2 += r * r
            dipole[node, 6, k] = r2


@compiled
def vertex_fans(vertices, triangles, neighbour, normals, valence, corner_of):
    """Add angle-weighted normals (V, 3) and return whether every vertex has one closed fan of triangles.

    ``neighbour`` (M, 3) is the triangle across edge (corner, corner + 1), -1 for none.
    """
    for t in range(triangles.shape[0]):
        a, b, c = vertices[triangles[t, 0]], vertices[triangles[t, 1]], vertices[triangles[t, 2]]
        u, v = b - a, c - a
        n = np.array((u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]))
        double_area = math.sqrt((n * n).sum())
        for corner in range(3):
            apex = vertices[triangles[t, corner]]
            p, q = vertices[triangles[t, (corner + 1) % 3]] - apex, vertices[triangles[t, (corner + 2) % 3]] - apex
            weight = math.atan2(double_area, (p * q).sum()) / (double_area if double_area > 1e-290 else 1.0)
            normals[triangles[t, corner]] += weight * n
            valence[triangles[t, corner]] += 1
            corner_of[triangles[t, corner]] = 3 * t + corner
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
def fill_grid(node_box, node_child, leaf_xyz, origin, cell, grid_slot, grid_distance):
    """Fill a nearest slot and a lower bound of the unsigned distance (mm) for the centre of each cell."""
    stack_node, stack_lb, lane = np.empty(STACK, np.int64), np.empty(STACK), np.empty(8)
    seed = 0
    for i in range(grid_slot.shape[0]):
        for j in range(grid_slot.shape[1]):
            for m in range(grid_slot.shape[2]):
                k = m if (i + j) % 2 == 0 else grid_slot.shape[2] - 1 - m
                x, y, z = origin[0] + (i + 0.5) * cell, origin[1] + (j + 0.5) * cell, origin[2] + (k + 0.5) * cell
                d2, seed, _, _ = nearest_to_point(
                    node_box, node_child, leaf_xyz, 0, x, y, z, seed, FAR, 1 << 40, stack_node, stack_lb, lane
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
    for slot in slots:
        leaf, k = slot // 8, slot % 8
        n = slot_normal(leaf_xyz, slot)
        for side in (-1.0, 1.0):
            p = np.empty(3)
            for i in range(3):
                middle = (leaf_xyz[leaf, i, k] + leaf_xyz[leaf, 3 + i, k] + leaf_xyz[leaf, 6 + i, k]) / 3.0
                p[i] = middle + side * step_mm * n[i]
            w = winding_number(node_child, leaf_xyz, leaf_triangle, dipole, 0, 0, p[0], p[1], p[2], stack_node)
            if math.fabs(w - (0.5 - 0.5 * side)) > 0.3:
                return False
    return True
