// Operations as commands for a shell, and sent by the page itself.

import { made } from "./elements.js";
import * as key from "./key.js";
import { pretty } from "./schema.js";
import { quoted } from "./snippets.js";

const SHOWN = 20_000; // characters of a response
const FILES = ["first.png", "second.png"];

/** Where the page was loaded from, which may be below a prefix. */
export const origin = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

/** What an operation is sent, of the first type that it takes: its kind, and its text if it is JSON. */
function bodyOf(operation) {
  const [[type, media] = []] = Object.entries(operation.requestBody?.content ?? {});
  if (type === undefined) return { kind: null };
  if (type === "multipart/form-data") return { kind: "form" };
  if (type !== "application/json") return { kind: "image" };
  const example = media.example ?? Object.values(media.examples ?? {})[0]?.value;
  return { kind: "json", text: JSON.stringify(example ?? {}), unknown: example === undefined };
}

/** Whether an operation needs a key. */
export const keyed = ({ security }) => Boolean(security?.every((each) => Object.keys(each).length));

/** Whether trying an operation changes nothing. */
export function harmless(method, operation) {
  return method === "get" || !operation.description?.includes("admin key");
}

/** Whether the page can try an operation. */
export const runs = (method, operation) => harmless(method, operation) && !bodyOf(operation).unknown;

/** An operation's path for a model. */
export function pathFor(path, model) {
  const values = { name: model, model_name: model, version: "1" };
  return path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(values[name] ?? name.toUpperCase()));
}

export function curl(method, path, operation) {
  const { kind, text } = bodyOf(operation);
  const plain = method === "get" || (method === "post" && kind);
  return [
    `curl ${plain ? "" : `-X ${method.toUpperCase()} `}${quoted(`${origin()}${path}`)}`,
    ...(keyed(operation) ? ["-H 'X-API-Key: KEY'"] : []),
    ...(kind === "image" ? ["-H 'Content-Type: image/png'", "--data-binary @ship.png"] : []),
    ...(kind === "form" ? FILES.map((name) => `-F 'image=@ship.png;filename=${name}'`) : []),
    ...(kind === "json" ? ["-H 'Content-Type: application/json'", `--data ${quoted(text)}`] : []),
  ].join(" \\\n  ");
}

async function requestOf(method, operation) {
  const { kind, text } = bodyOf(operation);
  const headers = key.current() ? { "X-API-Key": key.current() } : {};
  if (kind === "json") return { method, headers: { ...headers, "Content-Type": "application/json" }, body: text };
  if (!kind) return { method, headers };
  const ship = await (await fetch("web/ship.png")).blob();
  if (kind === "image") return { method, headers: { ...headers, "Content-Type": "image/png" }, body: ship };
  const body = new FormData();
  for (const name of FILES) body.append("image", ship, name);
  return { method, headers, body };
}

/** A response's content as an element. */
async function shown(response) {
  const type = response.headers.get("Content-Type") ?? "";
  if (type.startsWith("image/")) {
    return made("img", { src: URL.createObjectURL(await response.blob()), alt: "The response" });
  }
  const text = await response.text();
  const isJson = /[/+]json\b/.test(type);
  const whole = isJson && text ? pretty(JSON.parse(text)) : text;
  return made("pre", {}, whole.length > SHOWN ? `${whole.slice(0, SHOWN)}\n… ${whole.length} characters` : whole);
}

/** Sends an operation's example and puts the response, or what went wrong, into `place`. */
export async function run(method, path, operation, place) {
  place.replaceChildren(made("p", { class: "soft" }, "Waiting…"));
  const started = performance.now();
  try {
    const request = await requestOf(method.toUpperCase(), operation);
    const response = await fetch(`${origin()}${path}`, request);
    const body = await shown(response);
    const time = Math.round(performance.now() - started);
    const status = `${response.status} ${response.statusText}`.trim();
    const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    place.replaceChildren(
      made("p", {}, made("strong", { class: response.ok ? "good" : "bad" }, status), ` in ${time} ms`),
      ...(response.status === 401 ? [made("p", {}, "Enter a key at ", made("a", { href: "#start" }, "the top of this page"), ".")] : []),
      made("details", {}, made("summary", {}, "Headers"), made("pre", {}, headers)),
      body,
    );
  } catch (error) {
    place.replaceChildren(made("p", { class: "bad" }, `The service did not answer: ${error.message}`));
  }
}
