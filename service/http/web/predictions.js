import { $, alone, made, milliseconds, percent } from "./elements.js";

const PHASES = [
  ["accept", "Accepting"], ["decode", "Decoding"], ["queue", "Queueing"], ["inference", "Inference"],
  ["rest", "Other"],
];

export const figureOf = (probability, independent) => (independent ? alone : percent)(probability);

function row({ label, probability }, independent) {
  const fill = made("span", { class: "fill" });
  fill.style.width = `${100 * probability}%`;
  return [
    made("span", { class: "label" }, label),
    made("span", { class: "figure" }, figureOf(probability, independent)),
    made("span", { class: "track" }, fill),
  ];
}

/**
 * Shows classes as bars; with `choose`, as buttons, of which `chosen` is pressed. `independent` labels
 * have a scale each, from absent to present.
 */
export function showPredictions(predictions, { chosen, choose, independent }) {
  $("predictions").classList.toggle("independent", independent);
  $("independent").hidden = !(independent && predictions.length);
  const rows = predictions.map((prediction) => {
    const parts = row(prediction, independent);
    if (!choose) return made("div", { class: "row" }, ...parts);
    const pressed = prediction.class_id === chosen;
    const button = made("button", { type: "button", class: "row", "aria-pressed": pressed }, ...parts);
    button.addEventListener("click", () => choose(prediction.class_id));
    return button;
  });
  $("predictions").replaceChildren(...rows.map((entry) => made("li", {}, entry)));
}

/** Marks another class as chosen, keeping the rows, as one may have the focus. */
export function markChosen(predictions, chosen) {
  $("predictions").querySelectorAll("button").forEach((button, index) => {
    button.setAttribute("aria-pressed", predictions[index].class_id === chosen);
  });
}

/** Shows a response's time by phase; `seen` is the round trip in milliseconds. */
export function showTiming({ timing_ms: timing, batch_size: batch }, seen) {
  const known = timing.accept + timing.decode + timing.queue + timing.inference;
  const times = { ...timing, rest: Math.max(0, timing.total - known) };
  const words = PHASES.map(([phase, name]) => `${name.toLowerCase()} ${milliseconds(times[phase])}`);
  $("phases").setAttribute("aria-label", words.join(", "));
  $("phases").replaceChildren(...PHASES.map(([phase]) => {
    const part = made("span", { class: phase });
    part.style.flexGrow = times[phase];
    return part;
  }));
  $("legend").replaceChildren(...PHASES.map(([phase, name]) => made(
    "li", {}, made("span", { class: `swatch ${phase}`, "aria-hidden": "true" }), name,
    made("span", { class: "figure" }, milliseconds(times[phase])),
  )));
  $("sum").textContent = `${milliseconds(timing.total)} in the service, in a batch of ${batch}; `
    + `${milliseconds(seen)} round trip.`;
}
