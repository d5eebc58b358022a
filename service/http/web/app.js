import { UNREACHABLE } from "./api.js";
import * as camera from "./camera.js";
import { $, made } from "./elements.js";
import * as key from "./key.js";
import * as live from "./live.js";
import * as map from "./map.js";
import * as models from "./models.js";
import { figureOf, markChosen, showPredictions, showTiming } from "./predictions.js";
import { post, typeOf } from "./sending.js";
import * as snippets from "./snippets.js";

const AT_ONCE = 4; // requests
const MOST = 200; // images
const ENLARGED = 384; // pixels that smaller images are enlarged to
const TINY = 128; // pixels below which each of them is worth seeing

let pictures = []; // one per file, with its outcome
let chosen = null; // the one shown
let running = new AbortController(); // aborts all requests for the pictures
let mapping = new AbortController(); // aborts the request for a map

const isTiny = (image) => Math.max(image.naturalWidth, image.naturalHeight) < TINY;
const classless = () => models.serving()?.num_classes === 0;
const mapped = () => models.serving()?.explain === true;

/** The request for a picture. */
function requestFor(file) {
  const [model, topK] = [$("model").value, Number($("top-k").value)];
  const [endpoint, more] = classless() ? ["embed", ""] : ["classify", `&top_k=${topK}`];
  const path = `v1/${endpoint}?model=${encodeURIComponent(model)}${more}`;
  return { path, endpoint, model, topK, name: file.name, type: typeOf(file), keyed: key.current() !== null };
}

// Pictures.

function take(files) {
  if (!files.length) return;
  for (const picture of pictures) URL.revokeObjectURL(picture.url);
  pictures = [...files].slice(0, MOST).map((file) => ({
    file, url: URL.createObjectURL(file), maps: new Map(),
  }));
  pictures.forEach(addCard);
  $("gallery").replaceChildren(...pictures.map((picture) => made("li", {}, picture.card)));
  $("several").hidden = pictures.length < 2;
  $("several-name").textContent = files.length > MOST
    ? `The first ${MOST} of ${files.length} images`
    : `${files.length} images`;
  choose(pictures[0]);
  classifyAll();
}

function addCard(picture) {
  const image = made("img", { src: picture.url, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("tiny", isTiny(image)));
  image.addEventListener("error", () => image.remove());
  picture.outcome = made("strong");
  picture.card = made(
    "button", { type: "button", "aria-pressed": "false" },
    made("span", { class: "thumbnail" }, image), made("span", { class: "name" }, picture.file.name),
    picture.outcome,
  );
  picture.card.addEventListener("click", () => {
    choose(picture);
    if ($("stage").getBoundingClientRect().top < 0) $("stage").scrollIntoView();
  });
}

function choose(picture) {
  mapping.abort();
  chosen = picture;
  for (const each of pictures) each.card.setAttribute("aria-pressed", String(each === picture));
  $("empty").hidden = true;
  $("unshown").hidden = true;
  $("picture").hidden = false;
  $("preview").removeAttribute("width");
  $("preview").alt = picture.file.name;
  $("preview").src = picture.url;
  showOutcome(picture);
  showMap(picture);
}

function showSize() {
  const { naturalWidth: width, naturalHeight: height } = $("preview");
  const [longest, tiny] = [Math.max(width, height), isTiny($("preview"))];
  const times = tiny ? Math.floor(ENLARGED / longest) : ENLARGED / longest;
  $("preview").classList.toggle("tiny", tiny);
  if (times > 1) $("preview").setAttribute("width", Math.round(times * width));
}

function showUnseen() {
  if (!chosen) return;
  $("picture").hidden = true;
  $("unshown").hidden = false;
  $("unshown").textContent = `This browser cannot display ${chosen.file.name}.`;
}

// Responses.

/** Sends all pictures to the chosen model, a few at a time; not before the models are listed. */
async function classifyAll() {
  if (!models.serving()) return;
  running.abort();
  mapping.abort();
  running = new AbortController();
  const { signal } = running;
  for (const picture of pictures) {
    Object.assign(picture, { answer: null, error: null, wait: null, maps: new Map() });
    showOutcome(picture);
  }
  const left = [...pictures];
  const line = async () => {
    while (left.length && !signal.aborted) await classify(left.shift(), signal);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, line));
  if (pictures.length && !signal.aborted) announce();
}

async function classify(picture, signal) {
  if (classless()) {
    picture.error = `The model ${models.serving().name} has no classes; use POST /v1/embed.`;
    showOutcome(picture);
    return;
  }
  const started = performance.now();
  try {
    const answer = await post(picture, requestFor(picture.file).path, signal, showWaiting);
    const seen = performance.now() - started;
    Object.assign(picture, { answer, seen, classId: answer.predictions[0].class_id });
  } catch (error) {
    if (signal.aborted) return;
    picture.error = error.message;
  }
  showOutcome(picture);
  if (picture === chosen) showMap(picture);
}

function outcomeOf({ answer, error, wait }) {
  if (error) return ["failed", "refused"];
  if (!answer) return [wait ? "waiting" : "…", "waiting"];
  const [{ label, probability }] = answer.predictions;
  return [`${label} ${figureOf(probability, models.independent())}`, "done"];
}

/** Shows a picture's state on its card and, if it is the chosen one, in the results. */
function showOutcome(picture) {
  showWaiting(picture);
  if (picture !== chosen) return;
  const { answer } = picture;
  showPredictions(answer?.predictions ?? [], {
    chosen: picture.classId,
    choose: mapped() ? (classId) => showMap(picture, classId) : null,
    independent: models.independent(),
  });
  $("timing").hidden = !answer;
  if (answer) showTiming(answer, picture.seen);
  showMapState();
  showSnippet();
}

/** Shows a picture's wait, or its error. */
function showWaiting(picture) {
  const [words, state] = outcomeOf(picture);
  picture.outcome.textContent = words;
  picture.card.dataset.state = state;
  if (picture !== chosen) return;
  const { answer, error, wait } = picture;
  $("hint").hidden = Boolean(answer || error || wait);
  $("hint").textContent = "Classifying…";
  // The alert is read out whenever it is set; the seconds beside it are not.
  const why = error ?? wait?.why ?? "";
  if ($("error").textContent !== why) $("error").textContent = why;
  $("wait").hidden = !wait;
  $("again").textContent = wait ? `Retrying in ${wait.seconds} s.` : "";
}

/** Announces the outcome of the pictures to screen readers, in one sentence. */
function announce() {
  const failed = pictures.filter((picture) => picture.error).length;
  const [first] = pictures;
  if (pictures.length > 1) $("said").textContent = `${pictures.length} images processed, ${failed} failed.`;
  else $("said").textContent = first.error ? "" : `${first.file.name}: ${outcomeOf(first)[0]}.`;
}

// Activation maps.

/** Shows the chosen picture's map with its controls, or why there is none. */
function showMapState() {
  const { answer, maps, classId, mapError } = chosen ?? {};
  const on = mapped() && $("map-on").checked;
  const explanation = on && answer ? maps.get(classId) : null;
  $("mapping").hidden = !(answer && mapped());
  $("opacity-label").hidden = !on;
  $("map").hidden = $("scale").hidden = !explanation;
  let note = "";
  if (explanation) {
    note = map.describe(explanation);
    map.draw($("map"), explanation);
    $("map").setAttribute("aria-label", `Activation map for ${explanation.label}. ${note}`);
    [$("lowest").textContent, $("highest").textContent] = map.limits(explanation);
  } else if (answer && !mapped()) {
    note = `${answer.model} has no activation map: ${models.serving()?.configuration.head.length
      || models.serving()?.head ? "its head is not a single linear layer."
      : "its last feature map has a single position."}`;
  } else if (on && mapError) {
    note = mapError;
  }
  $("map-note").textContent = note;
}

/** Shows each position's evidence for a class. */
async function showMap(picture, classId = picture.classId) {
  if (!picture.answer) return;
  Object.assign(picture, { classId, mapError: null });
  markChosen(picture.answer.predictions, classId);
  if (mapped() && $("map-on").checked && !picture.maps.has(classId)) {
    mapping.abort();
    mapping = new AbortController();
    const signal = AbortSignal.any([mapping.signal, running.signal]);
    const path = `v1/explain?model=${encodeURIComponent(picture.answer.model)}&class_id=${classId}`;
    try {
      picture.maps.set(classId, await post(picture, path, signal, showWaiting));
    } catch (error) {
      if (signal.aborted) return;
      picture.mapError = error.message;
    }
    if (signal.aborted || picture !== chosen) return;
  }
  showMapState();
}

function showSnippet() {
  const file = chosen?.file ?? new File([], "image.jpg", { type: "image/jpeg" });
  snippets.show(requestFor(file), chosen?.answer);
}

// Events.

function takeFrom(input) {
  take(input.files);
  input.value = ""; // so that the same file can be chosen again
}

const dragsFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  $("stage").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  $("stage").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => takeFrom($("file")));
$("capture").addEventListener("change", () => takeFrom($("capture")));
$("example").addEventListener("click", async () => {
  try {
    const blob = await (await fetch("web/ship.png")).blob();
    take([new File([blob], "ship.png", { type: "image/png" })]);
  } catch {
    $("error").textContent = UNREACHABLE;
  }
});
$("preview").addEventListener("load", showSize);
$("preview").addEventListener("error", showUnseen);
$("model").addEventListener("change", () => {
  models.show();
  showSnippet();
  classifyAll();
});
$("top-k").addEventListener("change", () => {
  showSnippet();
  classifyAll();
});
$("now").addEventListener("click", () => chosen.wait?.now());
$("stop").addEventListener("click", () => chosen.wait?.stop());
$("map-on").addEventListener("change", () => showMap(chosen));
const showOpacity = () => { $("map").style.opacity = $("opacity").value / 100; };
$("opacity").addEventListener("input", showOpacity);
$("languages").addEventListener("change", showSnippet);
$("copy").addEventListener("click", snippets.copy);

if (camera.available()) {
  camera.install((file) => take([file]));
} else {
  $("camera").addEventListener("click", () => $("capture").click());
}
$("camera").hidden = !camera.available() && !matchMedia("(pointer: coarse)").matches;

const ramp = made("canvas");
map.drawRamp(ramp);
$("ramp").append(ramp);
showOpacity();
const listModels = () => models.list((first) => {
  showMapState();
  showSnippet();
  if (first) classifyAll();
});
listModels();
live.watch(listModels);
