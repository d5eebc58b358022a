// The request that this page sends, in the words of other programs.

import { $ } from "./elements.js";

const SAID = 2000; // milliseconds

/** Quoted for a shell, where that is needed. */
function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function curl({ url, name, type, keyed }) {
  return [
    `curl ${quoted(url)}`,
    `-H 'Content-Type: ${type}'`,
    ...(keyed ? [`-H "X-API-Key: $API_KEY"`] : []),
    `--data-binary ${quoted(`@${name}`)}`,
  ].join(" \\\n  ");
}

// What JSON writes as a string, Python reads as the same.
const text = JSON.stringify;

function python({ place, name, type, model, topK, keyed }) {
  const key = keyed ? `\n        "X-API-Key": os.environ["API_KEY"],` : "";
  return `${keyed ? "import os\n" : ""}from pathlib import Path

import httpx

response = httpx.post(
    ${text(place)},
    params={"model": ${text(model)}, "top_k": ${topK}},
    headers={
        "Content-Type": ${text(type)},${key}
    },
    content=Path(${text(name)}).read_bytes(),
)
response.raise_for_status()
for each in response.json()["predictions"]:
    print(f"{each['probability']:6.1%}  {each['label']}")`;
}

function client({ base, name, model, topK, keyed }) {
  const key = keyed ? `, key=os.environ["API_KEY"]` : "";
  return `${keyed ? "import os\n\n" : ""}from service.client import Client

with Client(${text(base)}${key}) as client:
    answer = client.classify(
        ${text(name)}, model=${text(model)}, top_k=${topK}
    )
for each in answer.predictions:
    print(f"{each.probability:6.1%}  {each.label}")`;
}

function snippet(language, request, answer) {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const place = `${base}/v1/classify`;
  const whole = { ...request, base, place, url: `${base}/${request.path}` };
  if (language === "answer") return answer ? JSON.stringify(answer, null, 2) : "No answer yet.";
  return { curl, python, client }[language](whole);
}

/** Shows a request in the chosen language, or its answer, if there is one yet. */
export function show(request, answer) {
  const language = document.querySelector("[name=language]:checked").value;
  $("snippet").textContent = snippet(language, request, answer);
}

/** Copies what is shown, and says so for a while. */
export async function copy() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
  } catch {
    // Only pages that came over HTTPS or from this machine have a clipboard.
    getSelection().selectAllChildren($("snippet"));
    document.execCommand("copy");
  }
  $("copy").textContent = $("copied").textContent = "Copied";
  setTimeout(() => {
    $("copy").textContent = "Copy";
    $("copied").textContent = "";
  }, SAID);
}
