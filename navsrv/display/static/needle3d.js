// Owns: the moving part of the 3D view - needle, doubt at its tip, planned path, line to the nearest point.
// Draws what the frame says. The only geometry here is where on the shaft to start the line.

import * as THREE from "three";
import { NEEDLE, PLAN, TARGET } from "./palette.js";
import { overlayMaterial } from "./materials3d.js";

const UP = new THREE.Vector3(0, 0, 1);
const POINT_LENGTH_RADII = 3; // length of the drawn point, in radii of the needle

export class NeedleLayer {
  /** `shared`: the uniforms boneDepth, solidDepth and bufferSize, common to all overlay materials. */
  constructor(shared) {
    this.shared = shared;
    this.scene = new THREE.Scene();
    this.needle = new THREE.Group();
    this.plan = new THREE.Group();
    this.line = rod(overlayMaterial(shared, "#ffffff", { behindBone: 0.9, behindSolid: 0.8 }));
    this.nearest = new THREE.Mesh(
      new THREE.SphereGeometry(1, 16, 12),
      overlayMaterial(shared, "#ffffff", { behindBone: 0.9, behindSolid: 0.8 }),
    );
    this.doubt = new THREE.Mesh(
      new THREE.SphereGeometry(1, 24, 16),
      overlayMaterial(shared, NEEDLE, { alpha: 0.22, lit: 1, behindSolid: 0.6 }),
    );
    this.line.renderOrder = this.nearest.renderOrder = 4;
    this.doubt.renderOrder = 3;
    this.needle.renderOrder = 2;
    this.scene.add(this.plan, this.needle, this.doubt, this.line, this.nearest);
    this.hide();
  }

  /** Build the needle with its true diameter and length. */
  setTool({ diameter_mm, length_mm }) {
    const radius = diameter_mm / 2;
    const point = POINT_LENGTH_RADII * radius;
    this.lengthMm = length_mm;
    this.material = overlayMaterial(this.shared, NEEDLE, { lit: 1 });
    const shaft = new THREE.CylinderGeometry(radius, radius, length_mm - point, 24).rotateX(Math.PI / 2);
    shaft.translate(0, 0, -point - (length_mm - point) / 2);
    const tip = new THREE.ConeGeometry(radius, point, 24).rotateX(Math.PI / 2).translate(0, 0, -point / 2);
    const hub = new THREE.CylinderGeometry(radius * 2.6, radius * 2.6, 12, 24).rotateX(Math.PI / 2);
    hub.translate(0, 0, -length_mm - 6);
    this.needle.clear();
    this.needle.add(...[shaft, tip, hub].map((part) => new THREE.Mesh(part, this.material)));
  }

  setPlan({ entry_ct_mm, target_ct_mm, corridor_mm }) {
    const entry = new THREE.Vector3(...entry_ct_mm);
    const target = new THREE.Vector3(...target_ct_mm);
    this.path = rod(overlayMaterial(this.shared, PLAN, { alpha: 0.95, behindBone: 0.75, behindSolid: 0.5 }));
    this.pathEnds = [entry, target];
    const corridor = rod(overlayMaterial(this.shared, PLAN, { alpha: 0.13, lit: 1, behindBone: 0.7, behindSolid: 0.4 }));
    stretch(corridor, entry, target, corridor_mm);
    const mark = new THREE.Mesh(
      new THREE.SphereGeometry(1.6, 20, 14),
      overlayMaterial(this.shared, TARGET, { lit: 1, behindBone: 0.85, behindSolid: 0.7 }),
    );
    mark.position.copy(target);
    this.plan.add(this.path, corridor, mark);
  }

  hide() {
    for (const object of [this.needle, this.doubt, this.line, this.nearest]) object.visible = false;
    this.labelAt = null;
  }

  /** Place everything as `frame` says; `closest` is the row to draw the line for, or null. */
  show(frame, closest, lineColour, snapshot) {
    const tip = new THREE.Vector3(...frame.tip_ct_mm);
    const axis = new THREE.Vector3(...frame.axis_ct);
    this.needle.visible = true;
    this.needle.position.copy(tip);
    this.needle.quaternion.setFromUnitVectors(UP, axis);
    this.material.uniforms.alpha.value = snapshot ? 0.45 : 1; // a still position must not look live
    this.doubt.visible = closest !== null && closest.sigma_mm > 0;
    if (this.doubt.visible) {
      this.doubt.position.copy(tip);
      this.doubt.scale.setScalar(closest.sigma_mm);
    }
    const reachable = Array.isArray(closest?.nearest_ct_mm);
    this.line.visible = this.nearest.visible = reachable;
    this.labelAt = null;
    if (reachable) this.placeLine(closest, tip, axis, lineColour);
  }

  placeLine(closest, tip, axis, colour) {
    const to = new THREE.Vector3(...closest.nearest_ct_mm);
    const from = tip.clone();
    if (closest.part === "shaft") {
      const along = Math.min(0, Math.max(-this.lengthMm, to.clone().sub(tip).dot(axis)));
      from.addScaledVector(axis, along);
    }
    this.lineEnds = [from, to];
    this.nearest.position.copy(to);
    this.labelAt = from.clone().lerp(to, 0.5);
    for (const object of [this.line, this.nearest]) object.material.uniforms.colour.value.set(colour);
  }

  /** Keep thin things equally thin on the screen; call before each drawing. `mmPerPixel` at the orbit's centre. */
  fit(mmPerPixel) {
    if (this.path) stretch(this.path, ...this.pathEnds, 0.9 * mmPerPixel);
    if (this.line.visible) stretch(this.line, ...this.lineEnds, 1.3 * mmPerPixel);
    this.nearest.scale.setScalar(3.2 * mmPerPixel);
  }
}

/** A cylinder of unit radius and length along +z from its origin. */
function rod(material) {
  return new THREE.Mesh(new THREE.CylinderGeometry(1, 1, 1, 20, 1, true).rotateX(Math.PI / 2).translate(0, 0, 0.5), material);
}

function stretch(object, from, to, radius) {
  const along = to.clone().sub(from);
  const length = Math.max(along.length(), 1e-6);
  object.position.copy(from);
  object.quaternion.setFromUnitVectors(UP, along.divideScalar(length));
  object.scale.set(radius, radius, length);
}
