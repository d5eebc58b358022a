// The line in the header: whether the service can be used, and if not, why.

import { $ } from "./elements.js";
import { written } from "./words.js";

const DRAINING = "the service is shutting down"; // as /health/ready says it
const facts = { contact: "none yet", reasons: {}, models: [], locked: false, busy: false };

/** Whether the page waits for a key, and whether the service has stopped answering. */
export const locked = () => facts.locked;
export const silent = () => facts.contact === "lost";

const named = (names) => (names.length > 2 ? `${names.length} models` : names.join(" and "));

function told() {
  const { contact, reasons, models, locked: needed, busy } = facts;
  if (contact === "lost") return ["lost", "Not responding"];
  if (contact !== "answered") return ["connecting", "Connecting…"];
  if (Object.values(reasons).includes(DRAINING)) return ["draining", "Shutting down"];
  if (needed) return ["locked", "API key needed"];
  const bad = models.filter(({ state }) => ["failed", "lost"].includes(state));
  if (bad.length) return ["failed", `Failed: ${named(bad.map(({ name }) => name))}`];
  const unready = Object.keys(reasons);
  if (unready.length) {
    const some = unready.length < models.length;
    return ["loading", some ? `Loading ${named(unready)}…` : "Loading…"];
  }
  if (busy) return ["busy", "Busy"];
  const devices = [...new Set(models.map(({ device }) => device))].join(", ");
  return ["ready", devices ? `Ready on ${written(devices)}` : "Ready"];
}

/** Takes over facts that have changed. */
export function tell(changes) {
  Object.assign(facts, changes);
  const [state, words] = told();
  // It is read out whenever it is set.
  if ($("state").textContent !== words) $("state").textContent = words;
  $("state").dataset.state = state;
}
