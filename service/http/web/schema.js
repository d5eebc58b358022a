// JSON schemas of the API's description, in words.

import { made, prose } from "./elements.js";

const DEEPEST = 5; // nested objects, as schemas may refer to themselves

/** The target of a `$ref`, else the node itself. */
export function resolved(api, node) {
  const steps = node?.$ref?.split("/").slice(1);
  return steps ? resolved(api, steps.reduce((at, step) => at[step], api)) : node ?? {};
}

/** A value's type in a few words, with its limits. */
export function kind(api, given) {
  const schema = resolved(api, given);
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return [...new Set(either.map((each) => kind(api, each)))].join(" or ");
  if (schema.enum) return schema.enum.join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(api, schema.items)}`;
  const limits = [
    ["minimum", "from"], ["exclusiveMinimum", "above"],
    ["maximum", "minimum" in schema ? "to" : "up to"], ["exclusiveMaximum", "below"],
  ].filter(([key]) => Math.abs(schema[key]) < Number.MAX_SAFE_INTEGER).map(([key, word]) => `${word} ${schema[key].toLocaleString("en")}`);
  const name = schema.contentEncoding ?? schema.format ?? schema.type ?? "anything";
  return [name, ...limits].join(" ");
}

/** The schema of the object that a value is, holds or may be; null if there is none. */
function objectIn(api, given) {
  const schema = resolved(api, given);
  if (schema.properties) return schema;
  const parts = [schema.items, schema.additionalProperties, ...(schema.anyOf ?? schema.oneOf ?? [])];
  return parts.map((part) => (typeof part === "object" ? objectIn(api, part) : null)).find(Boolean) ?? null;
}

/** The fields of an object as a list, those of objects in it folded; null if it has none. */
export function fields(api, given, depth = 0) {
  const schema = objectIn(api, given);
  if (!schema || depth > DEEPEST) return null;
  return made("dl", { class: "fields" }, ...Object.entries(schema.properties).flatMap(([name, each]) => {
    const { description } = { ...resolved(api, each), ...each };
    const inner = fields(api, each, depth + 1);
    const needed = schema.required?.includes(name) ? "" : ", optional";
    const type = kind(api, each).replace(" or null", "") + needed;
    return [
      made("dt", {}, made("code", {}, name), " ", made("span", { class: "soft" }, type)),
      made("dd", {}, ...prose(description ?? ""), ...(inner ? [folded("Fields", inner)] : [])),
    ];
  }));
}

/** Children under a title that opens them. */
export function folded(title, ...children) {
  return made("details", {}, made("summary", {}, title), ...children);
}

/** Indented JSON with lists of numbers in a line. */
export function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/\[[\s\d.,eE+-]+\]/g, (list) => list.replace(/\s+/g, " ")
    .replace("[ ", "[").replace(" ]", "]"));
}
