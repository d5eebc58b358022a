import { Refused } from "./api.js";
import * as camera from "./camera.js";
import { $, made, shortened } from "./elements.js";
import * as key from "./key.js";
import * as live from "./live.js";
import * as map from "./map.js";
import * as models from "./models.js";
import { showNotice } from "./notice.js";
import { figureOf, markChosen, showPredictions, showTiming } from "./predictions.js";
import { fit, isTiny, showRegion } from "./preview.js";
import * as pulse from "./pulse.js";
import { post, typeOf } from "./sending.js";
import * as snippets from "./snippets.js";
import * as state from "./state.js";
import { isBusy, wordsFor } from "./words.js";

const AT_ONCE = 4; // requests
const MOST = 200; // images

let pictures = []; // one per file, with its outcome
let chosen = null; // the one shown
let running = new AbortController(); // aborts all requests for the pictures
let mapping = new AbortController(); // aborts the request for a map

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
  toStage();
  classifyAll();
}

/** Scrolls up to the picture, which the results follow, if it is above what is seen. */
function toStage() {
  if ($("stage").getBoundingClientRect().top < 0) $("stage").scrollIntoView();
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
    toStage();
  });
}

function choose(picture) {
  mapping.abort();
  chosen = picture;
  for (const each of pictures) each.card.setAttribute("aria-pressed", String(each === picture));
  $("empty").hidden = true;
  $("unshown").hidden = true;
  $("picture").hidden = false;
  $("preview").alt = shortened(picture.file.name);
  $("preview").src = picture.url;
  showOutcome(picture);
  showMap(picture);
}

function showUnseen() {
  if (!chosen) return;
  $("picture").hidden = true;
  $("unshown").hidden = false;
  const name = made("bdi", {}, shortened(chosen.file.name));
  $("unshown").replaceChildren("This browser cannot display ", name, ".");
}

// Responses.

/** Sends all pictures to the chosen model; not before the models are listed. */
function classifyAll() {
  if (!models.serving()) return;
  running.abort();
  mapping.abort();
  running = new AbortController();
  send(pictures);
}

const failed = () => pictures.filter(({ error }) => error && wordsFor(error.reason).again);

/** Sends pictures, a few at a time. */
async function send(list) {
  const { signal } = running;
  if (list.length) $("said").textContent = ""; // of other images
  for (const picture of list) {
    Object.assign(picture, { answer: null, error: null, wait: null, maps: new Map() });
    showOutcome(picture);
  }
  const left = [...list];
  const line = async () => {
    while (left.length && !signal.aborted) await classify(left.shift(), signal);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, line));
  if (list.length && !signal.aborted) announce();
}

async function classify(picture, signal) {
  const started = performance.now();
  try {
    if (classless()) throw new Refused("no_classes");
    const answer = await post(picture, requestFor(picture.file).path, signal, showWaiting);
    const seen = performance.now() - started;
    Object.assign(picture, { answer, seen, classId: answer.predictions[0].class_id });
  } catch (error) {
    if (signal.aborted) return;
    picture.error = error;
    if (error.reason === "unreachable") pulse.now();
  }
  showOutcome(picture);
  if (picture === chosen) showMap(picture);
}

function outcomeOf({ answer, error, wait }) {
  if (error?.reason === "no_classes") return ["No classes", "waiting"];
  if (error) return [error.reason === "unreachable" ? "Not sent" : "Failed", "refused"];
  if (!answer) return [wait ? "Waiting" : "…", "waiting"];
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
  const [words, outcome] = outcomeOf(picture);
  picture.outcome.textContent = words;
  picture.card.dataset.state = outcome;
  state.tell({ busy: pictures.some(({ wait }) => wait && isBusy(wait.refusal.reason)) });
  $("retry-all").hidden = failed().length === 0;
  if (picture === chosen) showHint();
}

function hint() {
  if (!chosen && classless()) return Object.values(wordsFor("no_classes")).slice(0, 2).join(" ");
  if (!chosen) return "The most likely classes of your image appear here.";
  if (models.serving() && !state.locked()) return "Classifying…";
  if (state.locked()) return "Enter the API key above; your image is then classified.";
  return "Your image is classified as soon as the service answers.";
}

/** Shows why the chosen picture has no answer, or what comes next. */
function showHint() {
  const { answer, error, wait } = chosen ?? {};
  $("hint").hidden = Boolean(answer || error || wait);
  $("skeleton").hidden = Boolean(answer || error || classless());
  $("hint").textContent = hint();
  showNotice({ error, wait });
}

/** Announces the outcome of the pictures to screen readers, in one sentence. */
function announce() {
  if (classless()) return; // An alert says so.
  const bad = pictures.filter((picture) => picture.error).length;
  const [first] = pictures;
  if (pictures.length > 1) $("said").textContent = `${pictures.length} images processed, ${bad} failed.`;
  else $("said").textContent = first.error ? "" : `${shortened(first.file.name)}: ${outcomeOf(first)[0]}.`;
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
  showRegion(explanation?.region ?? null);
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
      picture.mapError = `There is no activation map. ${error.message}`;
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
    pulse.now(); // It says that the service does not answer.
  }
});
$("preview").addEventListener("load", fit);
$("preview").addEventListener("error", showUnseen);
$("model").addEventListener("change", () => {
  $("switched").textContent = "";
  models.show();
  showHint();
  showSnippet();
  classifyAll();
});
$("top-k").addEventListener("change", () => {
  showSnippet();
  classifyAll();
});
$("now").addEventListener("click", () => chosen.wait?.now());
$("stop").addEventListener("click", () => chosen.wait?.stop());
function resend(list) {
  send(list);
  $("results-name").focus({ preventScroll: true }); // The button is no longer there.
}
$("retry").addEventListener("click", () => resend([chosen]));
$("retry-all").addEventListener("click", () => resend(failed()));
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

// The service.

let stale = false; // whether the models must be listed again
let before = null; // what /health/ready said

async function listModels() {
  stale = false;
  try {
    const another = await models.list();
    showMapState();
    showHint();
    showSnippet();
    if (another) classifyAll();
  } catch {
    stale = true;
  }
}

const failedFor = (reason) => pictures.filter(({ error }) => error?.reason === reason);

/** Follows what the service says of itself, and catches up after it was gone. */
async function answered(health) {
  const back = state.silent();
  state.tell({ contact: "answered", reasons: health.reasons });
  $("outage").hidden = true;
  const now = JSON.stringify(health);
  if (back) live.restart();
  const changed = before !== null && before !== now;
  if (stale || back || changed || models.outdated(health.reasons)) listModels();
  before = now;
  if (changed && health.status === "ready") send(failedFor("not_ready"));
  if (back) send(failedFor("unreachable"));
  // Else the service was there all the time: it was the request that failed.
  for (const picture of failedFor("unreachable")) {
    picture.error = new Refused("broken_off", picture.error.detail);
    showOutcome(picture);
  }
  showHint();
  await live.sample(listModels);
}

function silent(seconds) {
  if (!state.silent()) {
    $("outage-why").textContent = "The service is not responding.";
    live.clear();
  }
  state.tell({ contact: "lost" });
  $("outage").hidden = false;
  $("outage-next").textContent = `It may be restarting. Next attempt in ${seconds} s.`;
  showHint();
}

$("outage-now").addEventListener("click", pulse.now);
document.addEventListener("visibilitychange", live.restart);
listModels();
pulse.watch({ answered, silent });
