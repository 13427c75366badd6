// Owns: the alarm banner. Shows the frame's alarms, highest priority first; decides none of them.
// Colours and flash rates are those of the server's table (docs/alarms.md): high red 2 Hz, medium yellow 0.6 Hz, low cyan
// steady; acknowledged steady and without a sound.

import { msFromNs } from "./freshness.js";

const RANK = { high: 0, medium: 1, low: 2 };
const MARK = { high: "!!!", medium: "!!", low: "!" };
const SHOWN = 4; // more than this is a count: nobody reads a fifth alarm first

export class AlarmBanner {
  /** `acknowledge(id, tool)` returns a promise that rejects with the server's words. */
  constructor(root, acknowledge) {
    this.root = root;
    this.acknowledge = acknowledge;
    this.items = new Map();
    this.quiet = document.createElement("div");
    this.quiet.className = "quiet";
    this.more = document.createElement("div");
    this.more.className = "more";
    this.list = [];
    this.signature = null;
  }

  /** Show the alarms of `view.frame`; `serverMs` is the server's monotonic time now, in ms. */
  update(view, serverMs) {
    const alarms = view.fault ? [] : [...view.frame.alarms];
    this.tool = view.frame?.tool ?? this.tool;
    alarms.sort((a, b) => rank(a) - rank(b) || (BigInt(b.since_ns) > BigInt(a.since_ns) ? 1 : -1));
    this.list = alarms;
    const signature = JSON.stringify([view.fault, alarms.map((a) => [a.id, a.priority, a.phase, a.text, a.structure])]);
    if (signature !== this.signature) {
      this.signature = signature;
      this.rebuild(view.fault, alarms);
    }
    for (const alarm of alarms) this.items.get(alarm.id)?.setAge(serverMs - msFromNs(alarm.since_ns));
  }

  rebuild(fault, alarms) {
    const shown = alarms.slice(0, SHOWN);
    for (const id of this.items.keys()) if (!shown.some((a) => a.id === id)) this.items.delete(id);
    const nodes = shown.map((alarm) => {
      if (!this.items.has(alarm.id)) this.items.set(alarm.id, new AlarmItem((id) => this.acknowledge(id, this.tool)));
      const item = this.items.get(alarm.id);
      item.show(alarm);
      return item.node;
    });
    this.quiet.textContent = fault ? "Alarms unknown: no data from server" : "No active alarms";
    if (nodes.length === 0) nodes.push(this.quiet);
    if (alarms.length > SHOWN) {
      this.more.textContent = `+${alarms.length - SHOWN} more`;
      nodes.push(this.more);
    }
    this.root.replaceChildren(...nodes);
  }
}

/** High first; an alarm of a priority that this display does not know counts as high. */
function rank(alarm) {
  return (RANK[alarm.priority] ?? 0) + (alarm.phase === "acknowledged" ? 10 : 0);
}

class AlarmItem {
  constructor(acknowledge) {
    this.node = document.createElement("div");
    this.mark = part(this.node, "div", "alarm-mark");
    this.text = part(this.node, "div", "alarm-text");
    this.action = part(this.node, "div", "alarm-action");
    this.button = part(this.node, "button", "");
    this.detail = part(this.node, "div", "alarm-detail");
    this.button.type = "button";
    this.button.textContent = "Acknowledge";
    this.button.onclick = () => this.press(acknowledge);
  }

  async press(acknowledge) {
    this.button.disabled = true;
    this.error = "";
    try {
      await acknowledge(this.id);
    } catch (error) {
      this.error = ` · not acknowledged: ${error.message}`;
    }
    this.button.disabled = false;
  }

  show(alarm) {
    const priority = alarm.priority in RANK ? alarm.priority : "high";
    this.id = alarm.id;
    this.node.className = `alarm ${priority} ${alarm.phase}`;
    this.mark.textContent = MARK[priority];
    this.mark.title = `${priority} priority`;
    this.text.textContent = alarm.text;
    this.text.title = alarm.text;
    this.action.textContent = alarm.action ?? "";
    this.action.title = alarm.action ?? "";
    this.phase = { latched: "latched, condition over", acknowledged: "acknowledged" }[alarm.phase] ?? "active";
    this.button.hidden = alarm.phase === "acknowledged";
  }

  setAge(ageMs) {
    const age = Number.isFinite(ageMs) ? ` · ${formatAge(ageMs / 1000)}` : "";
    const text = `${this.phase}${age}${this.error ?? ""}`;
    if (this.detail.textContent !== text) this.detail.textContent = text;
  }
}

function part(parent, tag, className) {
  const node = document.createElement(tag);
  node.className = className;
  parent.append(node);
  return node;
}

/** "8 s", "2 min 05 s" or "3 h 20 min". */
export function formatAge(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}
