// Owns: the small pane with the last X-ray and its age. Still images are never live, so the age is always beside it.

import { fetchLatestFluoro } from "./api.js";
import { formatAge } from "./alarms.js";

const ASK_EVERY_MS = 3000;

export class FluoroPane {
  constructor(figure) {
    this.figure = figure;
    this.takenMs = NaN;
    setInterval(() => this.ask(), ASK_EVERY_MS);
    this.ask();
  }

  async ask() {
    let latest = null;
    try {
      latest = await fetchLatestFluoro();
    } catch {
      // The link's own watchdog says that the server is gone; here the picture only goes with it.
    }
    this.figure.hidden = latest === null;
    if (latest === null) return;
    const image = this.figure.querySelector("img");
    if (image.getAttribute("src") !== latest.image) image.src = latest.image;
    this.takenMs = /^\d+$/.test(String(latest.time_ns)) ? Number(latest.time_ns) / 1e6 : NaN; // wall time
    this.showAge();
  }

  showAge() {
    const age = (Date.now() - this.takenMs) / 1000;
    const text = Number.isFinite(age) ? `X-ray, ${formatAge(age)} ago` : "X-ray, time unknown";
    this.figure.querySelector("figcaption").textContent = text;
  }
}
