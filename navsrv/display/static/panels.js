// Owns: the right column - state, closest structure, list, trajectory - and the words in header and footer.
// A state is shown at once; numbers change at most ten times a second, since nobody can read them faster.

import { formatAge } from "./alarms.js";
import { criticalRows, isNumber, mm, rowColour } from "./rows.js";

const NUMBERS_EVERY_MS = 100;
const BAR_FULL_MM = 25;
const PARTS = { tip: "tip", shaft: "shaft", zone: "ablation zone" };

export class Panels {
  constructor(document_) {
    this.find = (selector) => document_.querySelector(selector);
    this.limits = new Map();
    this.colours = new Map();
    this.items = new Map();
    this.numbersAt = -Infinity;
    this.shown = { closest: null, state: null, reason: "" };
    this.still = document_.createElement("div");
    this.still.id = "still";
    this.still.hidden = true;
    this.find("#view3d").append(this.still);
  }

  setCase(caseInfo, colours) {
    this.items.clear(); // rows made before the case was known have neither colour nor limits
    this.text("#case-name", caseInfo.name);
    caseInfo.structures.forEach((structure, i) => {
      this.limits.set(structure.name, structure);
      this.colours.set(structure.name, colours[i]);
    });
  }

  text(selector, text) {
    const node = this.find(selector);
    if (node.textContent !== text) node.textContent = text;
  }

  /** Show `view` (freshness.js). Returns the row for the line in the 3D view with its colour and text. */
  update(view, nowMs) {
    const changed = view.state !== this.shown.state || view.geometry !== this.geometry;
    this.geometry = view.geometry;
    this.showState(view);
    const rows = view.geometry ? criticalRows(view.frame).filter((row) => isNumber(row.distance_mm)) : [];
    const closest = rows[0] ?? null;
    const alarms = view.fault ? [] : view.frame.alarms;
    const colour = rowColour(closest, alarms) ?? "#ffffff";
    if (changed || nowMs - this.numbersAt >= NUMBERS_EVERY_MS) {
      this.numbersAt = nowMs;
      const excepted = new Set((view.fault ? [] : (view.frame.exceptions ?? [])).map((one) => one.structure));
      this.showClosest(closest, colour, excepted);
      this.showList(view, alarms, excepted);
      this.showTrajectory(view);
      this.showTemperatures(view);
      this.showAge(view);
    }
    return { closest, colour, text: this.shown.closest ? `${this.shown.closest.distance_text} mm` : "" };
  }

  showState(view) {
    this.shown.state = view.state;
    this.shown.reason = view.reason;
    const card = this.find("#state");
    if (card.dataset.state !== view.state) card.dataset.state = view.state;
    this.text(".state-name", view.state);
    this.text(".state-reason", view.reason);
    const notice = this.find("#notice");
    notice.hidden = view.geometry || view.fault;
    this.text(".notice-state", view.state);
    this.text(".notice-reason", view.reason);
    // Who looks at the needle must not have to look elsewhere to learn that it is a picture of then.
    this.still.hidden = !view.snapshot;
    const still = view.snapshot ? `${view.reason.split(";")[0]} · not live` : "";
    if (this.still.textContent !== still) this.still.textContent = still;
    const insert = view.frame?.insert ? ` · ${view.frame.insert}` : "";
    this.text("#tool-name", view.frame ? `${view.frame.tool}${insert}` : "–");
    this.text("#phase", view.frame?.phase ?? "–");
  }

  showAge(view) {
    if (!view.geometry || !isNumber(view.frame.age_ms)) {
      this.text(".state-age", "");
      return;
    }
    const age = view.frame.age_ms + view.ageMs; // as old as the pose was at the step, and the frame's way here
    const old = age < 950 ? `${Math.max(10, Math.round(age / 10) * 10)} ms` : formatAge(age / 1000);
    this.text(".state-age", view.snapshot ? `${old} ago` : `pose ${old} old`);
  }

  showClosest(row, colour, excepted) {
    const card = this.find("#closest");
    card.dataset.level = row?.level ?? "unknown";
    card.style.setProperty("--level", row ? colour : "");
    this.text(".closest-name", row ? row.name : "No distance");
    this.text(".closest-number .value", row ? mm(row.distance_mm) : "–");
    this.text(".closest-number .sigma", row ? `± ${mm(row.sigma_mm)}` : "");
    const level = row && row.level !== "none" ? row.level.toUpperCase() : "";
    this.text("#closest .level", row && excepted.has(row.name) ? "NO ALARMS" : level);
    this.text(".closest-bound", row ? `from the ${PARTS[row.part] ?? row.part} · at least ${mm(row.lower_mm)} mm (95 %)` : "");
    this.shown.closest = row && { name: row.name, part: row.part, level: row.level, distance_text: mm(row.distance_mm) };
  }

  showList(view, alarms, excepted) {
    const list = this.find("#structures ol");
    const rows = view.fault ? [] : criticalRows(view.frame);
    for (const name of this.items.keys()) if (!rows.some((row) => row.name === name)) this.items.delete(name);
    const nodes = rows.map((row) => this.listItem(row, view.geometry, rowColour(row, alarms), excepted.has(row.name)));
    if (nodes.length !== list.childElementCount || nodes.some((node, i) => list.children[i] !== node)) {
      list.replaceChildren(...nodes);
    }
  }

  listItem(row, geometry, colour, excepted) {
    if (!this.items.has(row.name)) this.items.set(row.name, makeItem(row.name, this.colours.get(row.name), this.limits.get(row.name)));
    const node = this.items.get(row.name);
    const known = geometry && isNumber(row.lower_mm);
    node.classList.toggle("excepted", excepted);
    const value = node.querySelector(".value");
    const text = known ? mm(row.lower_mm) : "–";
    if (value.textContent !== text) value.textContent = text;
    node.style.setProperty("--level", known && colour ? colour : "");
    const share = known ? Math.max(0, Math.min(1, row.lower_mm / BAR_FULL_MM)) : 0;
    node.querySelector(".fill").style.transform = `scaleX(${share.toFixed(3)})`;
    return node;
  }

  showTrajectory(view) {
    const t = view.geometry ? view.frame.trajectory : null;
    const past = t && isNumber(t.depth_to_target_mm) && t.depth_to_target_mm < 0;
    const put = (key, text) => this.text(`#trajectory [data-key=${key}]`, text);
    this.text("#trajectory [data-key=depth-label]", past ? "Past target by" : "Depth to target");
    put("depth", t ? `${mm(past ? -t.depth_to_target_mm : t.depth_to_target_mm)} mm` : "–");
    put("lateral", t ? `${mm(t.lateral_mm)} mm` : "–");
    put("angle", t && isNumber(t.angle_deg) ? `${mm(t.angle_deg)}°` : "–");
    const corridor = this.find("#trajectory .corridor");
    corridor.dataset.inside = t ? String(t.inside_corridor) : "";
    const inside = t?.inside_corridor ? "Inside the corridor" : "Outside the corridor";
    this.text("#trajectory .corridor", t ? inside : "");
  }

  /** Temperatures have a validity of their own: they are shown while geometry is lost, and never when they are old. */
  showTemperatures(view) {
    const probes = view.fault ? [] : (view.frame.temperatures ?? []);
    const section = this.find("#temperatures");
    section.hidden = probes.length === 0;
    const list = section.querySelector("ol");
    list.classList.toggle("many", probes.length > 5);
    while (list.childElementCount > probes.length) list.lastElementChild.remove();
    while (list.childElementCount < probes.length) list.append(makeProbe());
    probes.forEach((probe, i) => {
      const age = isNumber(probe.age_ms) ? `${formatAge(probe.age_ms / 1000)} old` : "never read";
      const text = isNumber(probe.celsius) ? `${probe.celsius.toFixed(1)} °C` : `unknown, ${age}`;
      const node = list.children[i];
      const [name, value] = node.children;
      if (name.textContent !== probe.name) name.textContent = node.title = probe.name;
      if (value.textContent !== text) value.textContent = text;
      if (node.dataset.level !== probe.level) node.dataset.level = probe.level;
    });
  }

  /** Words for the footer about the link. */
  showLink({ fps, missed, ageMs, reconnects, rate, missedDeadlines }) {
    const parts = [
      `${fps.toFixed(0)} pictures/s`,
      `${rate.toFixed(0)} frames/s`,
      Number.isFinite(ageMs) ? `frame age ${ageMs < 1000 ? `${Math.round(ageMs)} ms` : formatAge(ageMs / 1000)}` : "frame age unknown",
      `${missed} missed`,
      `${missedDeadlines ?? "–"} deadlines missed`,
    ];
    if (reconnects > 0) parts.push(`${reconnects} reconnected`);
    this.text("#link-stats", parts.join("  ·  "));
  }
}

function makeProbe() {
  const node = document.createElement("li");
  node.innerHTML = '<span class="name"></span><span class="value"></span>';
  return node;
}

function makeItem(name, colour, limits) {
  const node = document.createElement("li");
  node.innerHTML = '<span class="swatch"></span><span class="name"></span><span class="bar"><span class="fill"></span></span><span class="value"></span>';
  node.querySelector(".swatch").style.background = colour ?? "#888";
  node.querySelector(".name").textContent = name;
  for (const limit of [limits?.caution_mm, limits?.warning_mm]) {
    if (!isNumber(limit)) continue;
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.style.left = `${Math.min(1, limit / BAR_FULL_MM) * 100}%`;
    node.querySelector(".bar").append(mark);
  }
  return node;
}
