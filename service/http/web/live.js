// The service's live figures, from its Prometheus metrics.

import { $, made, milliseconds } from "./elements.js";

const PATIENCE = 10_000; // milliseconds for an answer
const KEPT = 31; // samples: one minute
const WINDOW = 5; // samples per latency, as a single one holds few requests
const LINE = /^resnet_serve_(images_total|phase_seconds_bucket|queue_depth|queue_limit|model_ready){(.*)} (\S+)$/;
const FIGURES = [
  ["rate", "Images per second", (value) => value.toFixed(value < 10 ? 1 : 0)],
  ["p50", "Median latency", (value) => limited(value)],
  ["p99", "99th percentile", (value) => limited(value)],
  ["queue", "Queue", (value, { limit }) => `${value} of ${limit}`],
];

const limited = (seconds) => (seconds === Infinity ? "over 10 s" : milliseconds(1000 * seconds));

/** Parses one sample: counters since the start, and current gauges. */
function read(text) {
  const sample = { time: performance.now(), images: 0, buckets: new Map(), queue: 0, limit: 0, ready: [] };
  for (const line of text.split("\n")) {
    const [, name, labels, number] = LINE.exec(line) ?? [];
    const value = Number(number);
    if (name === "images_total") sample.images += value;
    else if (name === "queue_depth") sample.queue += value;
    else if (name === "queue_limit") sample.limit += value;
    else if (name === "model_ready") sample.ready.push(`${labels} ${value}`);
    else if (name && labels.includes('phase="total"')) {
      const bound = Number(/le="([^"]+)"/.exec(labels)[1].replace("+Inf", "Infinity"));
      sample.buckets.set(bound, (sample.buckets.get(bound) ?? 0) + value);
    }
  }
  return sample;
}

/** The quantile, in seconds, of requests between two samples; null without requests. */
function quantile(from, to, share) {
  const bounds = [...to.buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => to.buckets.get(bound) - (from.buckets.get(bound) ?? 0));
  const wanted = share * (counts.at(-1) ?? 0);
  if (!wanted) return null;
  const index = counts.findIndex((count) => count >= wanted);
  const [low, below] = index ? [bounds[index - 1], counts[index - 1]] : [0, 0];
  if (bounds[index] === Infinity) return Infinity;
  return low + ((bounds[index] - low) * (wanted - below)) / (counts[index] - below);
}

/** The figures of the newest sample. */
function pointOf(samples) {
  const [now, before] = [samples.at(-1), samples.at(-2)];
  const from = samples.at(-1 - WINDOW) ?? samples[0];
  return {
    rate: (1000 * (now.images - before.images)) / (now.time - before.time),
    p50: quantile(from, now, 0.5),
    p99: quantile(from, now, 0.99),
    queue: now.queue,
    limit: now.limit,
  };
}

/** An SVG path through values, interrupted at gaps; the newest is at the right. */
function line(values) {
  const known = values.filter((value) => Number.isFinite(value));
  const most = Math.max(...known, 1e-9);
  let pen = "M";
  return values.map((value, index) => {
    if (!Number.isFinite(value)) {
      pen = "M";
      return "";
    }
    const x = 100 - (100 * (values.length - 1 - index)) / (KEPT - 2);
    const step = `${pen}${x.toFixed(1)} ${(23 - (21 * value) / most).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

const shown = FIGURES.map(([name, title, format]) => {
  const path = made("path");
  const figure = made("dd", { id: `live-${name}` }, "–");
  const chart = made("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, path);
  return { name, format, figure, path, tile: made("div", {}, made("dt", {}, title), figure, chart) };
});

function show(points) {
  const latest = points.at(-1);
  for (const { name, format, figure, path } of shown) {
    const value = latest?.[name] ?? null;
    figure.textContent = value === null ? "–" : format(value, latest);
    path.setAttribute("d", line(points.map((point) => point[name] ?? NaN)));
  }
}

$("figures").replaceChildren(...shown.map(({ tile }) => tile));
let [samples, points, models] = [[], [], null];

/** Shows that there are no figures, as the service does not answer. */
export function clear() {
  [samples, points] = [[], []];
  show(points);
  $("live-note").textContent = "No figures: the service is not responding.";
}

/** Begins anew, as after a time without samples. */
export function restart() {
  [samples, points] = [[], []];
}

/** Takes a sample and shows the figures; calls `changed` if models came, went or changed their states. */
export async function sample(changed) {
  let taken;
  try {
    const response = await fetch("metrics", { signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(response.statusText);
    taken = read(await response.text());
  } catch {
    clear();
    return;
  }
  // After a restart, counters begin at 0.
  if (samples.length && taken.images < samples.at(-1).images) samples = [];
  samples = [...samples, taken].slice(-KEPT);
  if (samples.length > 1) points = [...points, pointOf(samples)].slice(1 - KEPT);
  const states = taken.ready.sort().join();
  if (models !== null && models !== states) changed();
  models = states;
  $("live-note").textContent = "All models, updated every 2 s; latencies over the last 10 s.";
  show(points);
}
