// Owns: choosing and wording what a frame says about structures. Chooses among the server's numbers; makes none.

const LEVEL_COLOURS = { caution: "#35d6ec", warning: "#ffd60a", breach: "#ff4646" };
const PRIORITY_COLOURS = { low: LEVEL_COLOURS.caution, medium: LEVEL_COLOURS.warning, high: LEVEL_COLOURS.breach };
const PRIORITIES = ["high", "medium", "low"];

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** One decimal, with a true minus sign; an en dash for what is not known. */
export function mm(value) {
  if (!isNumber(value)) return "–";
  const text = value.toFixed(1).replace(/^-(0\.0)$/, "$1");
  return text.replace("-", "\u2212");
}

/** For each critical structure its row (tip, shaft or zone) with the least lower bound; least first, unknown first of all. */
export function criticalRows(frame) {
  const worst = new Map();
  for (const row of frame.structures ?? []) {
    if (row.kind !== "critical") continue;
    const held = worst.get(row.name);
    if (held === undefined || bound(row) < bound(held)) worst.set(row.name, row);
  }
  return [...worst.values()].sort((a, b) => bound(a) - bound(b));
}

function bound(row) {
  return isNumber(row.lower_mm) ? row.lower_mm : -Infinity;
}

/**
 * Colour of a row: that of the highest alarm raised for the structure, or of its level where no alarm has been raised.
 * Null when neither calls for one.
 */
export function rowColour(row, alarms) {
  if (!row) return null;
  const raised = alarms.filter((a) => a.structure === row.name).map((a) => a.priority);
  const priority = PRIORITIES.find((p) => raised.includes(p));
  return PRIORITY_COLOURS[priority] ?? LEVEL_COLOURS[row.level] ?? null;
}
