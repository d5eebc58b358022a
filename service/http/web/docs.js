"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

/** An element with attributes and children, which are elements or strings. */
function made(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function table(heads, rows) {
  const line = (tag, cells) => made("tr", {}, ...cells.map((cell) => made(tag, {}, cell)));
  return made("table", {}, line("th", heads), ...rows.map((row) => line("td", row)));
}

/** The target of a schema's `$ref`, else the schema itself. */
function resolved(api, schema) {
  const steps = schema?.$ref?.split("/").slice(1);
  return steps ? resolved(api, steps.reduce((node, step) => node[step], api)) : schema ?? {};
}

/** A value's type in a few words, with its limits. */
function kind(api, given) {
  const schema = resolved(api, given);
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map((each) => kind(api, each)).join(" or ");
  if (schema.enum) return schema.enum.join(" or ");
  if (schema.type === "array") return `list of ${kind(api, schema.items)}`;
  const limits = [
    ["minimum", "from"], ["exclusiveMinimum", "above"],
    ["maximum", "minimum" in schema ? "to" : "up to"], ["exclusiveMaximum", "below"],
  ].filter(([key]) => key in schema).map(([key, word]) => `${word} ${schema[key]}`);
  const name = schema.format ?? schema.type ?? "anything";
  return [name, ...limits].join(" ");
}

/** An example of a schema, with types in place of values. */
function form(api, given, depth = 0) {
  const schema = resolved(api, given);
  if (depth < 6 && schema.type === "array") return [form(api, schema.items, depth + 1)];
  if (depth < 6 && schema.properties) {
    const entries = Object.entries(schema.properties);
    return Object.fromEntries(entries.map(([key, each]) => [key, form(api, each, depth + 1)]));
  }
  return kind(api, schema);
}

/** A text with its parts in backticks as code. */
function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? made("code", {}, part) : part));
}

function body(shape) {
  return typeof shape === "string" ? made("code", {}, shape) : made("pre", {}, JSON.stringify(shape, null, 2));
}

function curl(method, path, operation) {
  const origin = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const place = path.replace(/{(\w+)}/g, (_, name) => name.toUpperCase());
  const words = ["curl"];
  const kinds = Object.keys(operation.requestBody?.content ?? {});
  if (kinds.length === 1 && kinds[0] === "multipart/form-data") {
    words.push("-F image=@first.png", "-F image=@second.png");
  } else if (kinds[0] === "application/json") {
    const body = `'{"spec": "builtin:resnet10-cifar10"}'`;
    words.push(`-X ${method.toUpperCase()}`, "-H 'Content-Type: application/json'", `--data ${body}`);
  } else if (kinds.length) {
    words.push("-H 'Content-Type: image/png'", "--data-binary @image.png");
  } else if (method !== "get") {
    words.push(`-X ${method.toUpperCase()}`);
  }
  return [...words, `'${origin}${place}'`].join(" ");
}

function responses(api, operation) {
  return Object.entries(operation.responses).map(([status, response]) => {
    const [media, content] = Object.entries(response.content ?? {}).at(-1) ?? ["", {}];
    const shown = Object.keys(content.schema ?? {}).length
      ? made("details", {}, made("summary", {}, media),
             made("pre", {}, JSON.stringify(form(api, content.schema), null, 2)))
      : media;
    return [status, response.description, shown];
  });
}

function endpoint(api, path, method, operation) {
  const name = `${method.toUpperCase()} ${path}`;
  const parts = [made("h2", {}, made("code", {}, name)), made("p", {}, ...prose(operation.description ?? operation.summary ?? ""))];
  if (operation.parameters?.length) {
    parts.push(made("h3", {}, "Parameters"), table(["name", "in", "type", "description"], operation.parameters.map((each) => [
      made("code", {}, each.name), each.in, kind(api, each.schema).replace(" or null", "") + (each.required ? ", required" : ""),
      each.description ?? each.schema?.description ?? "",
    ])));
  }
  const bodies = Object.entries(operation.requestBody?.content ?? {});
  if (bodies.length) {
    parts.push(made("h3", {}, "Body"), table(["content type", "schema"], bodies.map(([media, { schema }]) => [
      made("code", {}, media), body(form(api, schema)),
    ])));
  }
  parts.push(made("h3", {}, "Responses"), table(["status", "description", "schema"], responses(api, operation)));
  parts.push(made("h3", {}, "Example"), made("pre", {}, curl(method, path, operation)));
  return made("section", { id: name }, ...parts);
}

async function start() {
  try {
    const api = await (await fetch("openapi.json")).json();
    document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
    document.getElementById("summary").textContent = api.info.summary ?? "";
    for (const [path, item] of Object.entries(api.paths)) {
      for (const method of METHODS.filter((each) => each in item)) {
        const section = endpoint(api, path, method, item[method]);
        const href = `#${encodeURIComponent(section.id)}`;
        document.getElementById("contents").append(made("a", { href }, section.id));
        document.getElementById("endpoints").append(section);
      }
    }
  } catch (error) {
    document.getElementById("error").textContent = `Cannot load openapi.json: ${error.message}`;
  }
}

start();
