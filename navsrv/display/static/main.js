// Owns: putting the parts together, and the one place where a frame becomes a picture.
// Each tick judges first whether there is a current frame; everything drawn follows from that judgement.

import { fetchCase, fetchMesh, fetchVolume } from "./api.js";
import { AlarmAudio } from "./audio.js";
import { AlarmBanner } from "./alarms.js";
import { Connection } from "./connection.js";
import { Exceptions } from "./exceptions.js";
import { FluoroPane } from "./fluoro.js";
import { FrozenGuard } from "./guard.js";
import { structureColours } from "./palette.js";
import { Panels } from "./panels.js";
import { judge } from "./freshness.js";
import { RegistrationView } from "./registration.js";
import { Scene3D } from "./scene3d.js";
import { Slices } from "./slices.js";

const WATCH_EVERY_MS = 50; // the picture's own rate stops in a hidden tab; this does not quite
const STATS_EVERY_MS = 500;

class Display {
  constructor() {
    const at = (id) => document.getElementById(id);
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
    this.link = new Connection(url, () => (this.newFrame = true));
    const command = (op, args) => this.link.command(op, args);
    this.panels = new Panels(document);
    this.alarms = new AlarmBanner(at("alarms"), (id, tool) => command("acknowledge_alarm", { id, tool }));
    this.exceptions = new Exceptions({ list: at("exceptions"), parked: at("parked") }, (structure, tool) =>
      command("except_structure", { structure, tool, reason: "ended at the display", on: false }),
    );
    this.registration = new RegistrationView({ card: at("registration"), panel: at("proposal") }, command);
    this.audio = new AlarmAudio(
      { word: at("audio-state"), enable: at("audio-enable"), pause: at("audio-pause") },
      (seconds) => command("pause_audio", { seconds }),
    );
    this.slices = new Slices(at("slices"));
    this.scene = new Scene3D(at("view3d"));
    this.guard = new FrozenGuard(at("frozen"));
    this.fault = at("fault");
    this.fluoro = new FluoroPane(at("fluoro"));
    this.view = null;
    this.newFrame = true;
    this.stats = { at: performance.now(), pictures: 0, frames: 0, fps: 0, rate: 0 };
  }

  start() {
    this.link.connect();
    setInterval(() => this.tick(performance.now()), WATCH_EVERY_MS);
    const paint = () => {
      this.tick(performance.now());
      if (this.scene.render()) this.stats.pictures += 1;
      this.slices.render(performance.now());
      requestAnimationFrame(paint);
    };
    requestAnimationFrame(paint);
    document.addEventListener("visibilitychange", () => this.tick(performance.now()));
    this.loadCase();
  }

  /** Judge what is current and show it, when a frame has come or the judgement has changed. */
  tick(nowMs) {
    this.guard.feed(nowMs);
    const view = judge(this.link.frame, this.link.clock, this.link, nowMs);
    const same = !this.newFrame && this.view !== null && view.fault === this.view.fault;
    if (!same) {
      this.newFrame = false;
      this.show(view, nowMs);
    }
    this.view = view;
    if (view.fault) this.showFault(view);
    const pausedS = view.fault ? 0 : (view.frame.audio_paused_s ?? 0);
    this.audio.update(this.alarms.list, view.fault && this.everCurrent, pausedS, nowMs);
    if (nowMs - this.stats.at >= STATS_EVERY_MS) this.showStats(nowMs);
  }

  show(view, nowMs) {
    this.everCurrent ||= !view.fault;
    this.fault.hidden = !view.fault;
    const { closest, colour, text } = this.panels.update(view, nowMs);
    const best = this.link.clock.at(nowMs);
    this.alarms.update(view, best === null ? NaN : nowMs + best.offset);
    this.exceptions.update(view);
    this.registration.update(view, this.link.reconnects);
    this.scene.update(view, closest, colour, text);
    this.slices.update(view);
  }

  showFault(view) {
    const detail = this.fault.querySelector(".fault-detail");
    if (detail.textContent !== view.reason) detail.textContent = view.reason;
    this.panels.shown.reason = view.reason;
  }

  showStats(nowMs) {
    const s = this.stats;
    const seconds = (nowMs - s.at) / 1000;
    s.fps = s.pictures / seconds;
    s.rate = (this.link.frames - s.frames) / seconds;
    Object.assign(s, { at: nowMs, pictures: 0, frames: this.link.frames });
    const { missed, reconnects } = this.link;
    const missedDeadlines = this.view.frame?.missed_deadlines;
    this.panels.showLink({ fps: s.fps, rate: s.rate, missed, reconnects, ageMs: this.view.ageMs, missedDeadlines });
    this.fluoro.showAge();
  }

  async loadCase() {
    const loading = document.getElementById("loading");
    try {
      const info = await fetchCase();
      const colours = structureColours(info.structures);
      this.panels.setCase(info, colours);
      if (info.plan) {
        this.scene.overlay.setPlan(info.plan);
        this.slices.setPlan(info.plan);
      }
      const tool = info.tools[0];
      if (tool) {
        this.scene.overlay.setTool(tool);
        this.slices.setTool(tool);
      }
      await this.loadMeshes(info, colours);
      this.scene.frameAnatomy(info.plan);
      if (info.volume) this.slices.setVolume(await fetchVolume(info.volume));
      loading.hidden = true;
      this.caseLoaded = true;
    } catch (error) {
      loading.textContent = `The case could not be loaded: ${error.message}`;
      loading.classList.add("failed");
      this.caseError = error.message;
    }
  }

  async loadMeshes(info, colours) {
    await Promise.all(
      info.structures.map(async (structure, i) => {
        const mesh = await fetchMesh(structure.mesh);
        this.scene.addStructure(structure, mesh, colours[i]);
        if (structure.kind === "critical" || structure.kind === "target") this.slices.addOutline(mesh, colours[i]);
      }),
    );
  }

  /** What is on the screen now, for tests and for people with a console. */
  get shown() {
    const { fault, frame, geometry, ageMs } = this.view ?? { fault: true, frame: null, geometry: false, ageMs: NaN };
    return {
      state: this.panels.shown.state,
      reason: this.panels.shown.reason,
      seq: frame?.seq ?? null,
      phase: frame?.phase ?? null,
      closest: this.panels.shown.closest,
      fault,
      faultShown: !this.fault.hidden,
      geometry,
      needleVisible: this.scene.overlay.needle.visible,
      lineLabel: this.scene.label.hidden ? null : this.scene.label.textContent,
      alarms: this.alarms.list.map(({ id, priority, phase, text }) => ({ id, priority, phase, text })),
      exceptions: this.exceptions.names,
      registration: { id: this.registration.id, state: this.registration.state, proposalShown: !this.registration.panel.hidden },
      audio: this.audio.state,
      fps: this.stats.fps,
      frameRate: this.stats.rate,
      lastFrameAgeMs: Number.isFinite(ageMs) ? ageMs : null,
      missed: this.link.missed,
      badMessages: this.link.badMessages,
      caseLoaded: this.caseLoaded ?? false,
      caseError: this.caseError ?? null,
    };
  }
}

const display = new Display();
window.navsrv = {
  get shown() {
    return display.shown;
  },
  display,
};
display.start();
