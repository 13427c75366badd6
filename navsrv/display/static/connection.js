// Owns: the WebSocket - reconnecting, acknowledging frames, counting missed ones, sending commands.
// Refuses: to judge or show anything; it keeps the newest frame and says when each message came.

import { ClockOffset, msFromNs } from "./freshness.js";

const RETRY_FIRST_MS = 200;
const RETRY_LAST_MS = 2000;
const COMMAND_TIMEOUT_MS = 5000;

export class Connection {
  /** `onFrame` is called after each frame has been stored; `url` is the server's `/ws`. */
  constructor(url, onFrame) {
    this.url = url;
    this.onFrame = onFrame;
    this.clock = new ClockOffset();
    this.open = false;
    this.receivedAt = NaN;
    this.frame = null;
    this.tool = null;
    this.missed = 0;
    this.frames = 0;
    this.badMessages = 0;
    this.reconnects = -1;
    this.lastSeq = new Map();
    this.pending = new Map();
    this.nextCommand = 1;
    this.retryMs = RETRY_FIRST_MS;
  }

  connect() {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.onopen = () => {
      this.open = true;
      this.reconnects += 1;
      this.retryMs = RETRY_FIRST_MS;
      // The server may have been restarted, on another machine too: its clock and its numbering start afresh.
      this.clock = new ClockOffset();
      this.lastSeq.clear();
      this.frame = null;
      this.receivedAt = NaN;
    };
    socket.onmessage = (event) => this.receive(event.data, performance.now());
    socket.onclose = () => this.lost();
  }

  lost() {
    this.open = false;
    this.frame = null;
    for (const { reject } of this.pending.values()) reject(new Error("connection lost"));
    this.pending.clear();
    const wait = this.retryMs * (0.75 + Math.random() / 2);
    this.retryMs = Math.min(this.retryMs * 2, RETRY_LAST_MS);
    setTimeout(() => this.connect(), wait);
  }

  receive(text, nowMs) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      message = null;
    }
    if (message === null || typeof message !== "object") this.badMessages += 1;
    else if ("v" in message && "seq" in message) this.takeFrame(message, nowMs);
    else if ("server_ns" in message) this.clock.add(Number(message.t_client), msFromNs(message.server_ns), nowMs);
    else if ("id" in message && "ok" in message) this.settle(message);
    else this.badMessages += 1;
  }

  takeFrame(frame, nowMs) {
    this.send({ ack: frame.seq, tool: frame.tool, t_client: performance.now() });
    if (frame.v !== 1) {
      this.badMessages += 1;
      return;
    }
    const last = this.lastSeq.get(frame.tool);
    this.lastSeq.set(frame.tool, frame.seq);
    if (last !== undefined && frame.seq > last + 1) this.missed += frame.seq - last - 1;
    this.tool ??= frame.tool;
    if (frame.tool !== this.tool) return; // one display follows one tool
    this.frames += 1;
    this.frame = frame;
    this.receivedAt = nowMs;
    this.onFrame();
  }

  settle(reply) {
    const waiting = this.pending.get(reply.id);
    if (waiting === undefined) return;
    this.pending.delete(reply.id);
    if (reply.ok) waiting.resolve(reply.result);
    else waiting.reject(new Error(errorText(reply.error)));
  }

  /** A promise of the command's result; rejects with the server's own words. */
  command(op, args) {
    const id = `display-${this.nextCommand++}`;
    return new Promise((resolve, reject) => {
      if (!this.send({ id, op, args })) {
        reject(new Error("not connected"));
        return;
      }
      this.pending.set(id, { resolve, reject });
      setTimeout(() => {
        if (this.pending.delete(id)) reject(new Error("the server did not answer"));
      }, COMMAND_TIMEOUT_MS);
    });
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }
}

function errorText(error) {
  if (typeof error === "string") return error;
  return error?.message ?? JSON.stringify(error ?? "refused");
}
