// The parts of the reference: operations, and what they have in common.

import { made, prose } from "./elements.js";
import { fields, folded, kind, pretty, resolved } from "./schema.js";
import { curl, harmless, keyed, pathFor, run, runs } from "./trying.js";

const SHORT = 60; // lines of an example

const link = (status) => made("a", { href: `#refusal-${status}` }, status);

function parametersOf(api, operation) {
  const given = (operation.parameters ?? []).map((each) => resolved(api, each));
  if (!given.length) return [];
  return [made("h4", {}, "Parameters"), made("dl", { class: "fields" }, ...given.flatMap((each) => {
    const type = kind(api, each.schema).replace(" or null", "") + (each.required ? ", required" : "");
    return [
      made("dt", {}, made("code", {}, each.name), " ", made("span", { class: "soft" }, `${each.in}, ${type}`)),
      made("dd", {}, ...prose(each.description ?? each.schema?.description ?? "")),
    ];
  }))];
}

/** The parts of a body: its examples, of which a short one is open if it is wanted, and its fields. */
function mediaOf(api, media, open = false) {
  const examples = "example" in media
    ? [["Example", media.example]]
    : Object.entries(media.examples ?? {}).map(([name, each]) => [`Example: ${name}`, each.value]);
  const list = fields(api, media.schema ?? {});
  return [
    ...examples.map(([title, value]) => {
      const text = pretty(value);
      const example = folded(title, made("pre", {}, text));
      example.open = open && text.split("\n").length <= SHORT;
      return example;
    }),
    ...(list ? [folded("Fields", list)] : []),
  ];
}

function contentOf(api, content, open = false) {
  return Object.entries(content ?? {}).map(([type, media]) => (
    made("div", { class: "media" }, made("code", {}, type), ...mediaOf(api, media, open))));
}

function bodyOf(api, { requestBody }) {
  if (!requestBody) return [];
  return [
    made("h4", {}, "Body"), made("p", {}, ...prose(requestBody.description ?? "")),
    ...contentOf(api, requestBody.content),
  ];
}

function responsesOf(api, operation) {
  const all = Object.entries(operation.responses);
  const own = all.filter(([status, each]) => status < "400" || !each.$ref);
  const common = all.filter((each) => !own.includes(each)).map(([status]) => status);
  const links = common.flatMap((status, at) => [at ? ", " : "", link(status)]);
  return [
    made("h4", {}, "Responses"),
    ...own.map(([status, response]) => made("div", { class: "response" },
      made("p", {}, made("strong", {}, status), " ", ...prose(response.description)),
      ...(status < "400" ? contentOf(api, response.content, true) : []))),
    ...(links.length ? [made("p", {}, "Refusals: ", ...links)] : []),
  ];
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard API requires HTTPS or localhost.
    getSelection().selectAllChildren(button.closest(".try").querySelector("pre"));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function tryingOf(path, method, operation, model) {
  const place = pathFor(path, model);
  const command = curl(method, place, operation);
  const copy = made("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => copied(copy, command));
  const outcome = made("div", { class: "outcome", role: "status" });
  const buttons = [copy];
  if (runs(method, operation)) {
    const running = made("button", { type: "button", class: "strong" }, "Run");
    running.addEventListener("click", () => run(method, place, operation, outcome));
    buttons.unshift(running);
  }
  return made("div", { class: "try" }, made("h4", {}, "Try it"), made("pre", { class: "command" }, command),
              made("div", { class: "buttons" }, ...buttons), outcome);
}

export const heading = (path, method) => [
  made("span", { class: `method ${method}` }, method.toUpperCase()), " ",
  // A line may end after each part of a path.
  made("code", {}, ...path.split("/").flatMap((part, at) => (at ? [made("wbr"), `/${part}`] : [part]))),
];

/** An operation, folded to what it is for. */
export function operationOf(api, path, method, operation, model) {
  const admin = keyed(operation) && !harmless(method, operation);
  return made("details", { id: operation.operationId, class: "operation" },
    made("summary", {}, made("h3", {}, ...heading(path, method)),
         made("p", {}, ...prose(operation.description ?? ""))),
    made("div", { class: "columns" },
      made("div", {}, ...parametersOf(api, operation), ...bodyOf(api, operation)),
      made("div", {}, tryingOf(path, method, operation, admin ? "NAME" : model), ...responsesOf(api, operation))));
}

/** What the shared refusals mean, by status, and the forms that they have. */
export function refusalsOf(api) {
  const reasons = new Map();
  const forms = new Map();
  for (const item of Object.values(api.paths)) {
    for (const { responses } of Object.values(item)) {
      for (const [status, given] of Object.entries(responses)) {
        if (status < "400" || !given.$ref) continue;
        const { description, content } = resolved(api, given);
        reasons.set(status, (reasons.get(status) ?? new Set()).add(description));
        for (const [type, { schema }] of Object.entries(content ?? {})) {
          forms.set(schema.$ref ?? JSON.stringify(schema), [type, schema]);
        }
      }
    }
  }
  const rows = [...reasons].sort().flatMap(([status, texts]) => [
    made("dt", { id: `refusal-${status}` }, status),
    made("dd", {}, ...[...texts].map((text) => made("p", {}, ...prose(text)))),
  ]);
  const shapes = [...forms.values()].map(([type, schema]) => folded(
    `${schema.$ref?.split("/").at(-1) ?? "Other"} (${type})`, fields(api, schema) ?? ""));
  return [rows, shapes];
}
