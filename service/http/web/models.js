import { ask } from "./api.js";
import { $, made } from "./elements.js";

const TOP_K = [1, 3, 5, 10, 20, 50];
const AGAIN = 1000; // milliseconds, while a model loads

let models = [];
let timer = 0;

/** The chosen model, as in GET /v1/models. */
export const serving = () => models.find((model) => model.name === $("model").value);

/** Lists the models, repeatedly until all have loaded; calls `listed(first)` each time. */
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
  const selected = $("model").value;
  $("model").replaceChildren(...models.map(({ name, state }) => {
    const option = made("option", { value: name }, state === "ready" ? name : `${name} (${state})`);
    option.selected = name === selected;
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

/** Whether the chosen model's labels are independent: their probabilities do not share 100 %. */
export const independent = () => serving()?.outputs === "independent";

function inputOf({ size, channels }) {
  const [height, width] = Array.isArray(size) ? size : [size, size];
  return `${width} × ${height} ${{ grey: "grey ", rgba: "RGBA " }[channels] ?? ""}pixels`;
}

function classesOf({ num_classes: count, embedding }) {
  if (!count) return `no classes, embeddings of ${embedding} numbers`;
  return `${count} ${independent() ? "independent labels" : "classes"}`;
}

const viewsOf = ({ views }) => (views === "mirrored" ? ", averaged with their mirror images" : "");

/** Shows the chosen model's description and its choices of top k. */
export function show() {
  const model = serving();
  if (!model) return;
  const sizes = TOP_K.filter((size) => size <= model.num_classes);
  const count = Number($("top-k").value || 5);
  $("top-k").disabled = !sizes.length;
  $("top-k").replaceChildren(...sizes.map((size) => {
    const option = made("option", {}, String(size));
    option.selected = size <= count;
    return option;
  }));
  $("about").textContent = model.state === "ready" || !model.reason
    ? `${model.architecture}, ${(model.parameters / 1e6).toFixed(2)} million parameters, `
      + `${classesOf(model)}, ${inputOf(model.input)}${viewsOf(model)}; `
      + `${model.engine ?? "loading"}, ${model.precision}, on ${model.device}`
    : `${model.name} is ${model.state}: ${model.reason}`;
}
