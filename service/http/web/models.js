import { ask } from "./api.js";
import { $, made } from "./elements.js";

const TOP_K = [1, 3, 5, 10, 20, 50];
const AGAIN = 1000; // milliseconds, while a model loads

let models = [];
let timer = 0;

/** The model that is chosen, as GET /v1/models describes it. */
export const serving = () => models.find((model) => model.name === $("model").value);

/** Lists the models, and again until all have loaded; `listed(first)` is called each time. */
export async function list(listed) {
  clearTimeout(timer);
  const first = !models.length;
  try {
    models = (await ask("v1/models")).models;
  } catch (error) {
    $("state").textContent = error.message;
    $("state").dataset.state = "failed";
    return;
  }
  const wanted = $("model").value;
  $("model").replaceChildren(...models.map(({ name, state }) => {
    const option = made("option", { value: name }, state === "ready" ? name : `${name} (${state})`);
    option.selected = name === wanted;
    return option;
  }));
  const waiting = models.filter((model) => model.state !== "ready");
  const devices = [...new Set(models.map((model) => model.device))].join(", ");
  $("state").textContent = waiting.length
    ? waiting.map((model) => `${model.name}: ${model.state}`).join(", ")
    : `ready on ${devices}`;
  $("state").dataset.state = waiting.length ? waiting[0].state : "ready";
  show();
  listed(first);
  if (waiting.some((model) => model.state === "loading")) timer = setTimeout(list, AGAIN, listed);
}

/** Shows what the chosen model is, and how many of its classes can be asked for. */
export function show() {
  const model = serving();
  if (!model) return;
  const sizes = TOP_K.filter((size) => size <= model.num_classes);
  const wanted = Number($("top-k").value || 5);
  $("top-k").replaceChildren(...sizes.map((size) => {
    const option = made("option", {}, String(size));
    option.selected = size <= wanted;
    return option;
  }));
  $("about").textContent = model.state === "ready" || !model.reason
    ? `${model.architecture}, ${(model.parameters / 1e6).toFixed(2)} million parameters, `
      + `${model.num_classes} classes, ${model.input.size} × ${model.input.size} pixels; `
      + `${model.engine ?? "loading"}, ${model.precision}, on ${model.device}`
    : `${model.name} is ${model.state}: ${model.reason}`;
}
