// The request that this page sends, in the words of other programs.

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
  const key = keyed ? `, "X-API-Key": os.environ["API_KEY"]` : "";
  return `${keyed ? "import os\n" : ""}from pathlib import Path

import httpx

response = httpx.post(
    ${text(place)},
    params={"model": ${text(model)}, "top_k": ${topK}},
    headers={"Content-Type": ${text(type)}${key}},
    content=Path(${text(name)}).read_bytes(),
)
response.raise_for_status()
for prediction in response.json()["predictions"]:
    print(f"{prediction['probability']:6.1%}  {prediction['label']}")`;
}

function client({ base, name, model, topK, keyed }) {
  const key = keyed ? `, key=os.environ["API_KEY"]` : "";
  return `${keyed ? "import os\n\n" : ""}from service.client import Client

with Client(${text(base)}${key}) as client:
    answer = client.classify(${text(name)}, model=${text(model)}, top_k=${topK})
for prediction in answer.predictions:
    print(f"{prediction.probability:6.1%}  {prediction.label}")`;
}

/** The text for a language, of a request and its answer, if there is one yet. */
export function snippet(language, request, answer) {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const place = `${base}/v1/classify`;
  const whole = { ...request, base, place, url: `${base}/${request.path}` };
  if (language === "answer") return answer ? JSON.stringify(answer, null, 2) : "No answer yet.";
  return { curl, python, client }[language](whole);
}
