// Owns: colours. Red and yellow belong to alarms alone, cyan to the low priority; anatomy uses none of them.

const CRITICAL = ["#b58cff", "#4f93ff", "#2fbf9f", "#e08ae6", "#7f8cff", "#86b86b", "#c7b6ff", "#3d9bc0", "#a56fd0", "#5fd0b0"];

export const TARGET = "#63e08f";
export const PLAN = "#a7f0c0";
export const BONE = "#ddd3c4";
export const SKIN = "#9fb2c6";
export const NEEDLE = "#f4f8fc";
export const BACKGROUND = "#0b1016";

/** A colour for each structure of the case, in its order. */
export function structureColours(structures) {
  let next = 0;
  return structures.map(({ kind }) => {
    if (kind === "critical") return CRITICAL[next++ % CRITICAL.length];
    if (kind === "target") return TARGET;
    return kind === "skin" ? SKIN : BONE;
  });
}
