// Asks the service every two seconds whether it is ready, and less and less often while it does not answer.

const EVERY = 2; // seconds
const HURRIED = 1; // seconds, while something loads
const LONGEST = 16; // seconds between two attempts
const PATIENCE = 10_000; // milliseconds for an answer
const STATUSES = ["ready", "not ready"];

let [failures, timer, asking, callbacks] = [0, 0, null, {}];

async function health() {
  const signal = AbortSignal.timeout(PATIENCE);
  const response = await fetch("health/ready", { cache: "no-store", signal });
  const told = await response.json();
  // Else it is a proxy that answers.
  if (!STATUSES.includes(told.status)) throw new Error(response.statusText);
  return told;
}

function countDown(seconds) {
  callbacks.silent(seconds);
  timer = setTimeout(() => (seconds > 1 ? countDown(seconds - 1) : ask()), 1000);
}

async function ask() {
  clearTimeout(timer);
  const own = asking = {};
  const told = await health().catch(() => null);
  if (asking !== own || document.hidden) return;
  if (!told) {
    failures += 1;
    countDown(Math.min(LONGEST, 2 ** failures));
    return;
  }
  failures = 0;
  await callbacks.answered(told);
  if (asking !== own || document.hidden) return;
  timer = setTimeout(ask, 1000 * (told.status === "ready" ? EVERY : HURRIED));
}

/** Asks at once. */
export const now = () => { ask(); };

/**
 * Asks while the page is visible. Calls `answered(health)` with each answer, and `silent(seconds)`
 * every second before the next attempt.
 */
export function watch(given) {
  callbacks = given;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    asking = null;
    if (!document.hidden) ask();
  });
  ask();
}
