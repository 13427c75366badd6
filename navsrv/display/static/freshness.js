// Owns: what time it is at the server, and whether a frame may be shown as current.
// Refuses: sockets and the DOM. Every function is told the time.

/** A frame older than this (by the server's clock), or a silence longer than this, is a fault of the display's link. */
export const SILENCE_MS = 300;

const VALID_STATES = new Set(["OK", "DEGRADED", "SNAPSHOT"]);
const KNOWN_STATES = new Set([...VALID_STATES, "STALE", "LOST", "UNREGISTERED", "FAULT"]);

/** Milliseconds (float) of a decimal nanosecond string; NaN when it is not one. */
export function msFromNs(text) {
  return /^\d+$/.test(String(text)) ? Number(text) / 1e6 : NaN;
}

/**
 * Offset between the server's monotonic clock and this page's `performance.now()`.
 *
 * Each exchange bounds the offset to +- half its round trip. The tightest bound wins, and a bound loosens with age,
 * because two quartz clocks drift apart. An exchange that was held up by a stall has a wide bound and so cannot make
 * an old frame look new.
 */
export class ClockOffset {
  static DRIFT = 1e-4; // ms of doubt per ms of age
  static KEEP = 64;

  constructor() {
    this.samples = [];
  }

  /** Take one exchange: sent at `sentMs`, answered with the server's `serverMs`, back at `nowMs`. */
  add(sentMs, serverMs, nowMs) {
    const half = (nowMs - sentMs) / 2;
    if (!(half >= 0) || !Number.isFinite(serverMs)) return;
    this.samples.push({ offset: serverMs - (sentMs + half), half, at: nowMs });
    if (this.samples.length > ClockOffset.KEEP) this.forgetWorst(nowMs);
  }

  forgetWorst(nowMs) {
    const doubts = this.samples.map((s) => s.half + ClockOffset.DRIFT * (nowMs - s.at));
    this.samples.splice(doubts.indexOf(Math.max(...doubts)), 1);
  }

  /** {offset, doubt} in ms at `nowMs`, or null before the first exchange. */
  at(nowMs) {
    let best = null;
    for (const s of this.samples) {
      const doubt = s.half + ClockOffset.DRIFT * (nowMs - s.at);
      if (best === null || doubt < best.doubt) best = { offset: s.offset, doubt };
    }
    return best;
  }

  /** The largest age in ms that a message stamped `stampNs` at the server may have now; NaN when not known. */
  ageMs(stampNs, nowMs) {
    const best = this.at(nowMs);
    return best === null ? NaN : nowMs + best.offset - msFromNs(stampNs) + best.doubt;
  }
}

/**
 * What may be shown now.
 *
 * Returns {fault, state, reason, geometry, snapshot, frame, ageMs}: `fault` means that this display has no current
 * frame (frame is null then, so nothing old can be drawn); `geometry` that needle and numbers may be drawn.
 */
export function judge(frame, clock, link, nowMs) {
  if (frame === null) return faultView(link, NaN, nowMs);
  const ageMs = clock.ageMs(frame.sent_ns, nowMs);
  if (!(ageMs <= SILENCE_MS)) return faultView(link, ageMs, nowMs);
  const known = KNOWN_STATES.has(frame.state);
  const geometry = VALID_STATES.has(frame.state) && Array.isArray(frame.tip_ct_mm) && Array.isArray(frame.axis_ct);
  return {
    fault: false,
    state: known ? frame.state : "FAULT",
    reason: known ? frame.reason || "" : `The server sent a state that this display does not know: ${frame.state}`,
    geometry,
    snapshot: frame.state === "SNAPSHOT",
    frame,
    ageMs,
  };
}

function faultView(link, ageMs, nowMs) {
  const view = { fault: true, state: "FAULT", geometry: false, snapshot: false, frame: null, ageMs };
  const silent = Number.isFinite(link.receivedAt) ? nowMs - link.receivedAt : NaN;
  if (!link.open) view.reason = "Connection lost, reconnecting";
  else if (Number.isNaN(silent)) view.reason = "Connected, no frame has arrived yet";
  else if (silent > SILENCE_MS) view.reason = `Connected, but silent for ${(silent / 1000).toFixed(1)} s`;
  else if (Number.isNaN(ageMs)) view.reason = "Comparing clocks with the server";
  else view.reason = `Frames arrive ${(ageMs / 1000).toFixed(1)} s late`;
  return view;
}
