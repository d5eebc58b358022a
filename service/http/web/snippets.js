// This page's request as code for other clients.

import { $ } from "./elements.js";

const SHOWN = 2000; // milliseconds

// What a reader does not see, or what changes the order of what he sees.
const UNSEEN = /[\p{Cc}\p{Cf}\u2028\u2029]/gu;

/** Shows unseen characters as escapes that both shells and Python know. */
function escaped(text) {
  return text.replace(UNSEEN, (letter) => {
    const code = letter.codePointAt(0).toString(16);
    return code.length > 4 ? `\\U${code.padStart(8, "0")}` : `\\u${code.padStart(4, "0")}`;
  });
}

/** Quotes text for a shell if necessary. */
export function quoted(text) {
  if (text.search(UNSEEN) >= 0) return `$'${escaped(text.replace(/['\\]/g, "\\$&"))}'`;
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

// JSON strings are valid Python literals.
const text = (value) => escaped(JSON.stringify(value));

function python({ place, name, type, model, topK, keyed, endpoint }) {
  const count = endpoint === "embed" ? "" : `, "top_k": ${topK}`;
  const printing = endpoint === "embed"
    ? `print(response.json()["embedding"])`
    : `for prediction in response.json()["predictions"]:
    print(f"{prediction['probability']:6.1%}  {prediction['label']}")`;
  const key = keyed ? `\n        "X-API-Key": os.environ["API_KEY"],` : "";
  return `${keyed ? "import os\n" : ""}from pathlib import Path

import httpx

response = httpx.post(
    ${text(place)},
    params={"model": ${text(model)}${count}},
    headers={
        "Content-Type": ${text(type)},${key}
    },
    content=Path(${text(name)}).read_bytes(),
)
response.raise_for_status()
${printing}`;
}

function client({ base, name, model, topK, keyed, endpoint }) {
  const [call, more, printing] = endpoint === "embed"
    ? ["embed", "", "print(result.embedding)"]
    : ["classify", `, top_k=${topK}`, `for prediction in result.predictions:
    print(f"{prediction.probability:6.1%}  {prediction.label}")`];
  const key = keyed ? `, key=os.environ["API_KEY"]` : "";
  return `${keyed ? "import os\n\n" : ""}from service.client import Client

with Client(${text(base)}${key}) as client:
    result = client.${call}(
        ${text(name)}, model=${text(model)}${more}
    )
${printing}`;
}

function snippet(language, request, answer) {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const place = `${base}/v1/${request.endpoint}`;
  const whole = { ...request, base, place, url: `${base}/${request.path}` };
  if (language === "response") return answer ? JSON.stringify(answer, null, 2) : "No response yet.";
  return { curl, python, client }[language](whole);
}

/** Shows a request in the chosen language, or its response. */
export function show(request, answer) {
  const language = document.querySelector("[name=language]:checked").value;
  $("snippet").textContent = snippet(language, request, answer);
}

/** Copies the snippet and confirms it briefly. */
export async function copy() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
  } catch {
    // The clipboard API requires HTTPS or localhost.
    getSelection().selectAllChildren($("snippet"));
    document.execCommand("copy");
  }
  $("copy").textContent = $("copied").textContent = "Copied";
  setTimeout(() => {
    $("copy").textContent = "Copy";
    $("copied").textContent = "";
  }, SHOWN);
}
