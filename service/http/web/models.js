import { ask } from "./api.js";
import { $, made, prose } from "./elements.js";
import { tell } from "./state.js";
import { written } from "./words.js";

const TOP_K = [1, 3, 5, 10, 20, 50];
let models = [];

/** The chosen model, as in GET /v1/models. */
export const serving = () => models.find((model) => model.name === $("model").value);

/** Lists the models; returns whether another one is now chosen. Throws `Refused`. */
export async function list() {
  const listed = (await ask("v1/models")).models;
  models = listed;
  const selected = $("model").value;
  $("model").replaceChildren(...models.map(({ name, state }) => {
    const option = made("option", { value: name }, state === "ready" ? name : `${name} (${state})`);
    option.selected = name === selected;
    return option;
  }));
  for (const name of ["choices", "code", "described"]) $(name).hidden = false;
  tell({ models });
  show();
  const now = $("model").value;
  if (selected && now !== selected) $("switched").textContent = `${selected} is no longer served; ${now} is chosen.`;
  return now !== selected;
}

/** Whether a model has loaded since they were listed; `reasons`: of those that are not ready. */
export const outdated = (reasons) => models.some(({ name, state }) => state === "loading" && !(name in reasons));

/** Whether the chosen model's labels are independent: their probabilities do not share 100 %. */
export const independent = () => serving()?.outputs === "independent";

function inputOf({ size, channels }) {
  const [height, width] = Array.isArray(size) ? size : [size, size];
  return `${width}\u00a0×\u00a0${height} ${{ grey: "grey ", rgba: "RGBA " }[channels] ?? ""}pixels`;
}

function classesOf({ num_classes: count, embedding }) {
  if (!count) return `no classes, embeddings of ${embedding} numbers`;
  return `${count} ${independent() ? "independent labels" : "classes"}`;
}

const viewsOf = ({ views }) => (views === "mirrored" ? ", averaged with their mirror images" : "");

/** What people call the architecture: a name of the service's own is no name to them. */
function kindOf({ architecture, configuration, depth, block }) {
  if (block) return `Own network of depth ${depth}`;
  // Not its depth: whether that counts shortcuts differs from name to name.
  const blocks = configuration.blocks.reduce((sum, each) => sum + each, 0);
  if (architecture === "custom") return `ResNet with ${blocks} residual block${blocks === 1 ? "" : "s"}`;
  return architecture
    .replace(/resnet(\d+)(?:_([\d.]+))?/, (_, deep, wide) => `ResNet-${deep}${wide ? `-${wide}` : ""}`)
    .replace("preact_", "Pre-activation ").replace("wide_", "Wide ")
    .replace("_small", " for small images").replace("_cifar", " for CIFAR");
}

function sizeOf({ parameters }) {
  return parameters < 1e5 ? parameters.toLocaleString("en") : `${(parameters / 1e6).toFixed(2)} million`;
}

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
  $("about").replaceChildren(...prose(model.state === "ready" || !model.reason
    ? `${kindOf(model)}, ${sizeOf(model)} parameters, `
      + `${classesOf(model)}, ${inputOf(model.input)}${viewsOf(model)}; `
      + written(`${model.engine ?? "loading"} engine, ${model.precision}, on ${model.device}`)
    : `${model.name} is ${model.state}${model.reason === model.state ? "" : `: ${model.reason}`}.`));
}
