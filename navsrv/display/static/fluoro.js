// Owns: the small pane with the last X-ray and its age. Still images are never live, so the age is always beside it.
// Where a C-arm's pictures come by its video output, a line says what its screen shows, and why a picture is refused.

import { fetchLatestFluoro, fetchVideos } from "./api.js";
import { formatAge } from "./alarms.js";

const ASK_EVERY_MS = 1500;

export class FluoroPane {
  constructor(figure) {
    this.figure = figure;
    this.takenMs = NaN;
    setInterval(() => this.ask(), ASK_EVERY_MS);
    this.ask();
  }

  async ask() {
    let latest = null;
    let videos = [];
    try {
      [latest, videos] = await Promise.all([fetchLatestFluoro(), fetchVideos()]);
    } catch {
      // The link's own watchdog says that the server is gone; here the picture only goes with it.
    }
    this.figure.hidden = latest === null && videos.length === 0;
    this.showVideos(videos);
    const image = this.figure.querySelector("img");
    image.hidden = latest === null;
    this.takenMs = NaN;
    this.has = latest !== null;
    if (latest !== null) {
      if (image.getAttribute("src") !== latest.image) image.src = latest.image;
      this.takenMs = /^\d+$/.test(String(latest.time_ns)) ? Number(latest.time_ns) / 1e6 : NaN; // wall time
    }
    this.showAge();
  }

  showVideos(videos) {
    const lines = videos.map((video) => {
      const line = document.createElement("p");
      line.classList.toggle("refused", video.reason !== "");
      const said = video.reason.startsWith(video.showing) ? video.reason : [video.showing, video.reason].filter(Boolean).join(": ");
      line.textContent = `${video.source}: ${said}`;
      return line;
    });
    this.figure.querySelector(".videos").replaceChildren(...lines);
  }

  showAge() {
    if (!this.has) {
      this.figure.querySelector("figcaption").textContent = "No X-ray yet";
      return;
    }
    const age = (Date.now() - this.takenMs) / 1000;
    const text = Number.isFinite(age) ? `X-ray, ${formatAge(age)} ago` : "X-ray, time unknown";
    this.figure.querySelector("figcaption").textContent = text;
  }
}
