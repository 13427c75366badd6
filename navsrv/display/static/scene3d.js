// Owns: the 3D view - camera, viewpoints, compass, and when to draw. Scene coordinates are LPS mm, nothing flipped.

import * as THREE from "three";
import { OrbitControls } from "./vendor/three/OrbitControls.js";
import { AnatomyLayer } from "./anatomy3d.js";
import { NeedleLayer } from "./needle3d.js";
import { screenQuad } from "./materials3d.js";

const SETTLE_MS = 180; // a camera still for this long gets the smooth picture
const FIELD_DEG = 28;

// Where the eye stands, seen from the centre, LPS.
const VIEWPOINTS = [
  ["Posterior", [-0.28, 1, 0.22]],
  ["Left", [1, 0.18, 0.12]],
  ["Right", [-1, 0.18, 0.12]],
  ["Feet", [0.02, 0.25, -1]],
];
const LETTERS = [["L", [1, 0, 0]], ["R", [-1, 0, 0]], ["P", [0, 1, 0]], ["A", [0, -1, 0]], ["S", [0, 0, 1]], ["I", [0, 0, -1]]];

export class Scene3D {
  constructor(root) {
    this.root = root;
    this.label = root.querySelector("#line-label");
    this.compass = root.querySelector("#compass");
    this.renderer = new THREE.WebGLRenderer({ canvas: root.querySelector("canvas"), antialias: false });
    this.renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 1.5));
    this.camera = new THREE.PerspectiveCamera(FIELD_DEG, 1, 1, 2000);
    this.camera.up.set(0, 0, 1);
    this.anatomy = new AnatomyLayer(this.renderer);
    this.shared = {
      boneDepth: { value: this.anatomy.boneDepth.depthTexture },
      solidDepth: { value: this.anatomy.solidDepth.depthTexture },
      bufferSize: { value: new THREE.Vector2(1, 1) },
    };
    this.overlay = new NeedleLayer(this.shared);
    this.quad = screenQuad();
    this.overlay.scene.add(this.quad);
    this.controls = new OrbitControls(this.camera, this.renderer.domElement);
    this.controls.addEventListener("change", () => this.cameraMoved());
    this.anatomyDirty = this.dirty = true;
    this.centre = new THREE.Vector3();
    this.radius = 120;
    this.addButtons();
    new ResizeObserver(() => this.resize()).observe(root);
    this.resize();
  }

  addButtons() {
    const bar = this.root.querySelector("#views");
    const choices = [...VIEWPOINTS.map(([name, from]) => [name, () => this.look(from)]), ["Along needle", () => this.lookAlongNeedle()]];
    for (const [name, go] of choices) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.onclick = go;
      bar.append(button);
    }
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (width === 0 || height === 0) return;
    this.renderer.setSize(width, height, false);
    const size = this.renderer.getDrawingBufferSize(this.shared.bufferSize.value);
    this.anatomy.resize(size.x, size.y);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.cameraMoved();
  }

  cameraMoved() {
    const distance = this.camera.position.distanceTo(this.controls.target);
    this.camera.near = Math.max(1, distance - 4 * this.radius);
    this.camera.far = distance + 4 * this.radius;
    this.camera.updateProjectionMatrix();
    this.anatomyDirty = this.dirty = true;
    this.fine = false;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.fine = this.anatomyDirty = this.dirty = true;
    }, SETTLE_MS);
  }

  addStructure(structure, mesh, colour) {
    this.anatomy.add(structure, mesh, colour);
    this.anatomyDirty = this.dirty = true;
  }

  /** Aim at the anatomy once it has been loaded; at the plan's target where there is one. */
  frameAnatomy(plan) {
    const sphere = this.anatomy.bounds.getBoundingSphere(new THREE.Sphere());
    if (!this.anatomy.bounds.isEmpty()) {
      this.centre.copy(sphere.center);
      this.radius = sphere.radius;
    }
    if (!plan) {
      this.look(VIEWPOINTS[0][1]);
      return;
    }
    this.centre.lerp(new THREE.Vector3(...plan.target_ct_mm), 0.7);
    this.look(besidePlan(plan, sphere.center), 0.8);
  }

  /** Look at the centre from the LPS direction `from`; `zoom` below 1 comes nearer than the whole anatomy needs. */
  look(from, zoom = 0.92) {
    const direction = new THREE.Vector3(...from).normalize();
    const fits = (this.radius * zoom) / Math.tan((FIELD_DEG * Math.PI) / 360);
    this.controls.target.copy(this.centre);
    this.camera.position.copy(this.centre).addScaledVector(direction, fits);
    this.controls.update();
    this.cameraMoved();
  }

  lookAlongNeedle() {
    if (!this.overlay.needle.visible) return;
    const tip = this.overlay.needle.position;
    const back = new THREE.Vector3(0, 0, -1).applyQuaternion(this.overlay.needle.quaternion);
    this.controls.target.copy(tip);
    this.camera.position.copy(tip).addScaledVector(back, this.radius * 2.6).add(new THREE.Vector3(0, 0, this.radius * 0.12));
    this.controls.update();
    this.cameraMoved();
  }

  /** Show `view` (freshness.js); `closest` and its colour and text as the panels show them. */
  update(view, closest, lineColour, text) {
    if (view.geometry) this.overlay.show(view.frame, closest, lineColour, view.snapshot);
    else this.overlay.hide();
    this.labelText = view.geometry ? text : "";
    if (!view.geometry) this.label.hidden = true;
    this.labelColour = lineColour;
    this.dirty = true;
  }

  /** Draw if anything changed; says whether it did. */
  render() {
    if (!this.dirty) return false;
    this.dirty = false;
    if (this.anatomyDirty) {
      this.anatomy.draw(this.camera, this.fine);
      this.quad.material.uniforms.picture.value = this.anatomy.picture;
      this.anatomyDirty = false;
      this.drawCompass();
    }
    const distance = this.camera.position.distanceTo(this.controls.target);
    this.overlay.fit((2 * distance * Math.tan((FIELD_DEG * Math.PI) / 360)) / this.root.clientHeight);
    this.renderer.render(this.overlay.scene, this.camera);
    this.placeLabel();
    return true;
  }

  placeLabel() {
    const at = this.overlay.labelAt;
    this.label.hidden = at === null || !this.labelText;
    if (this.label.hidden) return;
    const seen = at.clone().project(this.camera);
    const x = ((seen.x + 1) / 2) * this.root.clientWidth;
    const y = ((1 - seen.y) / 2) * this.root.clientHeight;
    this.label.style.transform = `translate(${Math.round(x + 14)}px, ${Math.round(y - 30)}px)`;
    this.label.style.color = this.labelColour;
    if (this.label.textContent !== this.labelText) this.label.textContent = this.labelText;
  }

  drawCompass() {
    const pen = this.compass.getContext("2d");
    const middle = this.compass.width / 2;
    pen.clearRect(0, 0, this.compass.width, this.compass.height);
    pen.font = "600 14px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const seen = LETTERS.map(([letter, axis]) => [letter, new THREE.Vector3(...axis).transformDirection(this.camera.matrixWorldInverse)]);
    for (const [letter, { x, y, z }] of seen.sort((a, b) => a[1].z - b[1].z)) {
      pen.globalAlpha = 0.35 + 0.32 * (z + 1);
      pen.strokeStyle = pen.fillStyle = "#c9d6e2";
      pen.beginPath();
      pen.moveTo(middle, middle);
      pen.lineTo(middle + 30 * x, middle - 30 * y);
      pen.stroke();
      pen.fillText(letter, middle + 42 * x, middle - 42 * y);
    }
  }
}

/** Direction from which the planned path is seen from the side and behind, from the middle of the body (least bone between). */
function besidePlan({ entry_ct_mm, target_ct_mm }, middle) {
  const back = new THREE.Vector3(...entry_ct_mm).sub(new THREE.Vector3(...target_ct_mm)).normalize();
  const side = new THREE.Vector3(0, 0, 1).cross(back).normalize();
  const towardsMiddle = Math.sign(side.dot(middle.clone().sub(new THREE.Vector3(...entry_ct_mm)))) || 1;
  return back.multiplyScalar(0.6).addScaledVector(side, 0.8 * towardsMiddle).add(new THREE.Vector3(0, 0, 0.35)).toArray();
}
