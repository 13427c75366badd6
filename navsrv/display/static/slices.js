// Owns: the three CT panes - which plane each shows, its picture, outlines, needle and letters.
// A pane's picture stands still until the tip nears its edge, so that only the crosshair moves.

import { PLANES, boundsOf, cutMesh, greyTable, prepareVolume, reslice } from "./reslice.js";
import { NEEDLE, PLAN } from "./palette.js";

const PIXELS = 256;
const FIELD_MM = { initial: 130, least: 50, most: 320 };
const RECENTRE = 0.28; // part of the field by which the tip may leave the centre
const SAME_PLANE_MM = 0.15;
const MIN_INTERVAL_MS = 45; // resampling is the display's dearest work after the anatomy
const WINDOW = { level: 320, width: 1200 };

export class Slices {
  constructor(root) {
    this.fieldMm = FIELD_MM.initial;
    this.panes = [...root.querySelectorAll(".slice")].map((figure) => new Pane(figure));
    this.table = greyTable(WINDOW.level, WINDOW.width);
    this.outlined = [];
    this.focus = [0, 0, 0];
    this.at = "";
    this.drawnAt = -Infinity;
    for (const { canvas } of this.panes) {
      canvas.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
    }
    new ResizeObserver(() => (this.dirty = true)).observe(root);
  }

  zoom(event) {
    event.preventDefault();
    const wanted = this.fieldMm * (event.deltaY > 0 ? 1.12 : 1 / 1.12);
    this.fieldMm = Math.min(FIELD_MM.most, Math.max(FIELD_MM.least, wanted));
    for (const pane of this.panes) pane.centre = null;
    this.dirty = true;
  }

  setVolume(info) {
    this.volume = prepareVolume(info);
    if (!this.focused) this.focus = middleOf(info);
    this.dirty = true;
  }

  setPlan(plan) {
    this.plan = plan;
    this.focus = plan.target_ct_mm;
    this.focused = this.dirty = true;
  }

  /** `lengthMm`: how much of the needle to draw behind its tip. */
  setTool({ length_mm }) {
    this.lengthMm = length_mm;
  }

  addOutline(mesh, colour) {
    this.outlined.push({ mesh, colour, bounds: boundsOf(mesh) });
    for (const pane of this.panes) pane.cutAt = NaN;
    this.dirty = true;
  }

  update(view) {
    if (view.geometry !== this.geometry) this.drawnAt = -Infinity; // a needle that is no longer valid goes at once
    this.geometry = view.geometry;
    if (view.geometry) {
      this.focus = view.frame.tip_ct_mm;
      this.axis = view.frame.axis_ct;
      this.focused = true;
      this.at = view.snapshot ? "snapshot" : "";
    } else {
      this.at = this.plan && !this.everTip ? "at target" : "position unknown";
    }
    this.everTip ||= view.geometry;
    this.dirty = true;
  }

  /** Draw if anything changed and the last drawing is long enough ago; says whether it did. */
  render(nowMs) {
    if (!this.dirty || nowMs - this.drawnAt < MIN_INTERVAL_MS) return false;
    this.dirty = false;
    this.drawnAt = nowMs;
    for (const pane of this.panes) pane.draw(this);
    return true;
  }
}

function middleOf({ shape, spacing_mm, origin_ct_mm, direction }) {
  const half = [shape[2] - 1, shape[1] - 1, shape[0] - 1].map((n, i) => (n * spacing_mm[i]) / 2);
  return [0, 1, 2].map((a) => origin_ct_mm[a] + half.reduce((sum, h, i) => sum + direction[3 * a + i] * h, 0));
}

class Pane {
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.caption = figure.querySelector("figcaption");
    this.name = figure.dataset.plane;
    this.plane = PLANES[this.name];
    this.picture = new ImageData(PIXELS, PIXELS);
    this.words = new Uint32Array(this.picture.data.buffer);
    this.stamp = document.createElement("canvas");
    this.stamp.width = this.stamp.height = PIXELS;
    // The hint keeps both canvases in main memory: a software GPU would only copy them to and fro.
    this.pen = this.canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    this.stampPen = this.stamp.getContext("2d", { alpha: false, willReadFrequently: true });
    this.centre = null;
    this.cutAt = NaN;
    this.cuts = [];
  }

  draw(slices) {
    this.place(slices);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.pen;
    // The square picture covers the pane; what hangs over at the long side is cut off.
    this.scale = Math.max(width, height) / slices.fieldMm;
    this.offset = [width / 2, height / 2];
    pen.fillStyle = "#0a0d12";
    pen.fillRect(0, 0, width, height);
    const side = slices.fieldMm * this.scale;
    pen.globalAlpha = slices.geometry ? 1 : 0.45;
    if (slices.volume) pen.drawImage(this.stamp, (width - side) / 2, (height - side) / 2, side, side);
    this.drawOutlines(pen);
    if (slices.plan) this.drawPlan(pen, slices.plan);
    pen.globalAlpha = 1;
    if (slices.geometry) this.drawNeedle(pen, slices, width, height);
    this.drawLetters(pen, width, height);
    this.drawCaption(slices);
  }

  /** Choose the plane and the centre; resample only when one of them has changed. */
  place({ volume, focus, fieldMm, table, outlined }) {
    const { normal } = this.plane;
    const old = this.centre;
    const limit = RECENTRE * fieldMm;
    const inside = old !== null && old.every((c, a) => a === normal || Math.abs(focus[a] - c) < limit);
    this.centre = inside ? [...old] : [...focus];
    this.centre[normal] = focus[normal];
    const still = inside && Math.abs(focus[normal] - this.drawnPlane) < SAME_PLANE_MM;
    if (still && this.volume === volume) this.centre[normal] = this.drawnPlane;
    else if (volume) {
      reslice(volume, this.plane, this.centre, fieldMm, PIXELS, table, this.words);
      this.stampPen.putImageData(this.picture, 0, 0);
      this.volume = volume;
      this.drawnPlane = this.centre[normal];
    }
    const at = this.centre[normal];
    if (at === this.cutAt) return;
    this.cutAt = at;
    this.cuts = outlined
      .filter(({ bounds }) => bounds[normal][0] <= at && at <= bounds[normal][1])
      .map(({ mesh, colour }) => ({ colour, points: cutMesh(mesh, normal, at) }));
  }

  /** Pane pixel of an LPS point, projected on the plane. */
  pixel(x, y, z) {
    const { right, down } = this.plane;
    const d = [x - this.centre[0], y - this.centre[1], z - this.centre[2]];
    const u = d[0] * right[0] + d[1] * right[1] + d[2] * right[2];
    const v = d[0] * down[0] + d[1] * down[1] + d[2] * down[2];
    return [this.offset[0] + u * this.scale, this.offset[1] + v * this.scale];
  }

  drawOutlines(pen) {
    pen.lineWidth = 1.75;
    for (const { colour, points } of this.cuts) {
      pen.strokeStyle = colour;
      pen.beginPath();
      for (let p = 0; p < points.length; p += 6) {
        pen.moveTo(...this.pixel(points[p], points[p + 1], points[p + 2]));
        pen.lineTo(...this.pixel(points[p + 3], points[p + 4], points[p + 5]));
      }
      pen.stroke();
    }
  }

  drawPlan(pen, { entry_ct_mm, target_ct_mm }) {
    pen.strokeStyle = PLAN;
    pen.lineWidth = 1.25;
    pen.setLineDash([6, 5]);
    line(pen, this.pixel(...entry_ct_mm), this.pixel(...target_ct_mm));
    pen.setLineDash([]);
  }

  drawNeedle(pen, { focus, axis, lengthMm }, width, height) {
    const tip = this.pixel(...focus);
    pen.strokeStyle = "rgba(220, 232, 244, 0.35)";
    pen.lineWidth = 1;
    line(pen, [0, tip[1]], [width, tip[1]]);
    line(pen, [tip[0], 0], [tip[0], height]);
    pen.strokeStyle = NEEDLE;
    pen.lineWidth = 2.5;
    line(pen, tip, this.pixel(...focus.map((c, a) => c - (lengthMm ?? 100) * axis[a])));
    pen.beginPath();
    pen.arc(...tip, 4.5, 0, 2 * Math.PI);
    pen.fillStyle = "#0a0d12";
    pen.fill();
    pen.lineWidth = 2;
    pen.stroke();
  }

  drawLetters(pen, width, height) {
    const [left, right, top, bottom] = this.plane.letters;
    pen.font = "600 15px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const put = (letter, x, y) => {
      pen.lineWidth = 3;
      pen.strokeStyle = "#0a0d12";
      pen.strokeText(letter, x, y);
      pen.fillStyle = "#e6eef6";
      pen.fillText(letter, x, y);
    };
    put(left, 12, height / 2);
    put(right, width - 12, height / 2);
    put(top, width / 2, 14);
    put(bottom, width / 2, height - 13);
  }

  drawCaption({ at, volume }) {
    const name = this.name[0].toUpperCase() + this.name.slice(1);
    const note = volume ? at : "no CT in this case";
    const text = note ? `${name}\n${note}` : name;
    if (this.caption.textContent !== text) this.caption.textContent = text;
  }
}

function line(pen, from, to) {
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}
