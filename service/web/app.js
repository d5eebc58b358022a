"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "resnet-serve-key"; // in the tab's own storage, until it closes
let shown = null; // the object URL of the preview

async function json(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (response.status === 401) {
    const given = prompt(`${body.detail}\n\nAPI key:`)?.trim();
    if (/^[!-~]+$/.test(given ?? "")) {
      sessionStorage.setItem(KEY, given);
      return json(path, options);
    }
  }
  if (!response.ok) throw new Error(body.detail ?? response.statusText);
  return body;
}

async function listModels() {
  const { models } = await json("v1/models");
  $("model").replaceChildren(...models.map((model) => new Option(model.name)));
  const waiting = models.filter((model) => model.state !== "ready");
  $("state").textContent = waiting.length
    ? waiting.map((model) => `${model.name}: ${model.state}`).join(", ")
    : `ready on ${[...new Set(models.map((model) => model.device))].join(", ")}`;
  if (waiting.some((model) => model.state === "loading")) setTimeout(start, 1000);
}

function show(answer) {
  $("predictions").replaceChildren(...answer.predictions.map(({ label, probability }) => {
    const row = document.createElement("li");
    const name = document.createElement("span");
    const figure = document.createElement("span");
    const bar = document.createElement("progress");
    name.textContent = label;
    figure.textContent = `${(100 * probability).toFixed(1)} %`;
    bar.value = probability;
    bar.setAttribute("aria-label", label);
    row.append(name, figure, bar);
    return row;
  }));
  const { decode, queue, inference, total } = answer.timing_ms;
  $("timing").textContent =
    `${total.toFixed(1)} ms: decoding ${decode.toFixed(1)}, waiting ${queue.toFixed(1)}, ` +
    `inference ${inference.toFixed(1)}, in a batch of ${answer.batch_size}`;
}

async function classify(image) {
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(image);
  $("preview").src = shown;
  $("preview").alt = image.name ?? "the pasted image";
  $("preview").hidden = false;
  $("hint").hidden = true;
  $("error").textContent = $("timing").textContent = "";
  $("predictions").replaceChildren();
  try {
    const model = encodeURIComponent($("model").value);
    show(await json(`v1/classify?model=${model}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: image,
    }));
  } catch (error) {
    $("error").textContent = error.message;
  }
}

function first(files) {
  const image = [...files].find((file) => file.type.startsWith("image/"));
  if (image) classify(image);
}

$("file").addEventListener("change", (event) => first(event.target.files));
$("model").addEventListener("change", () => first($("file").files));
$("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  first(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => first(event.clipboardData.files));

function start() {
  listModels().catch((error) => { $("state").textContent = error.message; });
}
start();
