// Owns: the two shaders of the 3D view. Colours pass through unchanged (no tone mapping, no colour management).

import * as THREE from "three";

THREE.ColorManagement.enabled = false;

const TISSUE_VERTEX = /* glsl */ `
  varying vec3 vNormal;
  varying vec3 vView;
  void main() {
    vec4 seen = modelViewMatrix * vec4(position, 1.0);
    vNormal = normalMatrix * normal;
    vView = -seen.xyz;
    gl_Position = projectionMatrix * seen;
  }`;

const TISSUE_FRAGMENT = /* glsl */ `
  uniform vec3 colour;
  uniform float faceAlpha;
  uniform float rimAlpha;
  varying vec3 vNormal;
  varying vec3 vView;
  void main() {
    float facing = abs(dot(normalize(vNormal), normalize(vView)));
    float alpha = mix(rimAlpha, faceAlpha, facing);
    gl_FragColor = vec4(colour * (0.4 + 0.6 * facing), alpha);
  }`;

/** Anatomy lit from the eye; `faceAlpha` where it faces the eye, `rimAlpha` at its outline. */
export function tissueMaterial(colour, faceAlpha, rimAlpha) {
  const solid = faceAlpha >= 1;
  return new THREE.ShaderMaterial({
    vertexShader: TISSUE_VERTEX,
    fragmentShader: TISSUE_FRAGMENT,
    uniforms: {
      colour: { value: new THREE.Color(colour) },
      faceAlpha: { value: faceAlpha },
      rimAlpha: { value: rimAlpha },
    },
    transparent: !solid,
    depthWrite: solid,
    side: solid ? THREE.DoubleSide : THREE.FrontSide,
  });
}

const OVERLAY_FRAGMENT = /* glsl */ `
  uniform vec3 colour;
  uniform float alpha;
  uniform float lit;
  uniform float behindBone;
  uniform float behindSolid;
  uniform sampler2D boneDepth;
  uniform sampler2D solidDepth;
  uniform vec2 bufferSize;
  varying vec3 vNormal;
  varying vec3 vView;
  void main() {
    vec2 uv = gl_FragCoord.xy / bufferSize;
    float facing = abs(dot(normalize(vNormal), normalize(vView)));
    float shade = mix(1.0, 0.35 + 0.65 * facing, lit);
    // The canvas has no multisampling, which software OpenGL pays for dearly; a lit edge fades over one pixel instead.
    float seen = alpha * mix(1.0, smoothstep(0.0, max(fwidth(facing), 1e-4), facing), lit);
    if (gl_FragCoord.z > texture2D(solidDepth, uv).r) seen *= behindSolid;
    else if (gl_FragCoord.z > texture2D(boneDepth, uv).r) seen *= behindBone;
    gl_FragColor = vec4(colour * shade, seen);
  }`;

/**
 * What moves, drawn over the cached anatomy. Where the cached depth is nearer, it fades by `behindBone` or
 * `behindSolid` instead of vanishing: a needle inside bone must stay visible.
 */
export function overlayMaterial(shared, colour, { alpha = 1, lit = 0, behindBone = 0.6, behindSolid = 0.25 } = {}) {
  return new THREE.ShaderMaterial({
    vertexShader: TISSUE_VERTEX,
    fragmentShader: OVERLAY_FRAGMENT,
    uniforms: {
      colour: { value: new THREE.Color(colour) },
      alpha: { value: alpha },
      lit: { value: lit },
      behindBone: { value: behindBone },
      behindSolid: { value: behindSolid },
      ...shared,
    },
    transparent: true,
    depthWrite: alpha === 1,
  });
}

/** A triangle that covers the screen and shows a texture as it is. */
export function screenQuad() {
  const material = new THREE.ShaderMaterial({
    vertexShader: "varying vec2 vUv; void main() { vUv = position.xy * 0.5 + 0.5; gl_Position = vec4(position.xy, 0.0, 1.0); }",
    fragmentShader: "uniform sampler2D picture; varying vec2 vUv; void main() { gl_FragColor = texture2D(picture, vUv); }",
    uniforms: { picture: { value: null } },
    depthTest: false,
    depthWrite: false,
  });
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array([-1, -1, 0, 3, -1, 0, -1, 3, 0]), 3));
  const quad = new THREE.Mesh(geometry, material);
  quad.frustumCulled = false;
  quad.renderOrder = -1;
  return quad;
}
