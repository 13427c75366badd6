// Owns: the still part of the 3D view - the anatomy, drawn into a picture once for each camera position.
// Software OpenGL draws 100,000 triangles at 10 frames/s; it shows a kept picture of them at 40.

import * as THREE from "three";
import { BACKGROUND } from "./palette.js";
import { tissueMaterial } from "./materials3d.js";

const SOLID = 1;
const BONE = 2;
const SKIN = 3;

export class AnatomyLayer {
  constructor(renderer) {
    this.renderer = renderer;
    this.scene = new THREE.Scene();
    this.scene.background = new THREE.Color(BACKGROUND);
    this.depthOnly = new THREE.MeshBasicMaterial({ colorWrite: false });
    this.bounds = new THREE.Box3();
    this.fine = new THREE.WebGLRenderTarget(1, 1, { samples: 4 });
    this.fast = new THREE.WebGLRenderTarget(1, 1);
    this.boneDepth = depthTarget();
    this.solidDepth = depthTarget();
    this.picture = this.fast.texture;
  }

  resize(width, height) {
    for (const target of [this.fine, this.fast, this.boneDepth, this.solidDepth]) target.setSize(width, height);
  }

  /** Add one structure; `mesh` as api.js gives it, LPS mm. */
  add({ kind }, mesh, colour) {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(mesh.vertices, 3));
    geometry.setIndex(new THREE.BufferAttribute(mesh.indices, 1));
    geometry.computeVertexNormals();
    if (kind === "skin") {
      this.put(geometry, tissueMaterial(colour, 0.0, 0.14), SKIN, 3);
      return;
    }
    geometry.computeBoundingBox();
    this.bounds.union(geometry.boundingBox);
    if (kind === "bone") {
      // Depth first, so that only the bone's front surface is blended over what lies inside it.
      this.put(geometry, this.depthOnly, BONE, 1);
      this.put(geometry, tissueMaterial(colour, 0.3, 0.85), BONE, 2);
    } else {
      this.put(geometry, tissueMaterial(colour, 1, 1), SOLID, 0);
    }
  }

  put(geometry, material, layer, order) {
    const object = new THREE.Mesh(geometry, material);
    object.layers.set(layer);
    object.renderOrder = order;
    this.scene.add(object);
  }

  /** Draw the kept picture and its depths anew for `camera`; `fine` smooths the edges at about four times the cost. */
  draw(camera, fine) {
    const target = fine ? this.fine : this.fast;
    this.pass(camera, target, [SOLID, BONE, SKIN]);
    this.pass(camera, this.boneDepth, [BONE]);
    this.pass(camera, this.solidDepth, [SOLID]);
    this.renderer.setRenderTarget(null);
    camera.layers.enableAll();
    this.picture = target.texture;
  }

  pass(camera, target, layers) {
    camera.layers.disableAll();
    for (const layer of layers) camera.layers.enable(layer);
    const depth = target.depthTexture !== null;
    this.scene.overrideMaterial = depth ? this.depthOnly : null;
    this.renderer.setRenderTarget(target);
    this.renderer.clear();
    this.renderer.render(this.scene, camera);
    this.scene.overrideMaterial = null;
  }
}

function depthTarget() {
  const depthTexture = new THREE.DepthTexture(1, 1, THREE.UnsignedIntType);
  return new THREE.WebGLRenderTarget(1, 1, { depthTexture });
}
