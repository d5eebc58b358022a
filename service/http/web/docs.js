import { $, made, prose } from "./elements.js";
import * as key from "./key.js";
import { heading, operationOf, refusalsOf } from "./operation.js";
import { keyed, origin } from "./trying.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const OPENED = "classify"; // the operation that is open at first
const AGAIN = "OfVersion"; // the end of the names of operations that do what others do
const WIDE = matchMedia("(min-width: 64rem)");

function operationsOf(api) {
  return Object.entries(api.paths).flatMap(([path, item]) => (
    METHODS.filter((method) => method in item).map((method) => [path, method, item[method]])))
    .filter(([, , { operationId }]) => !operationId.endsWith(AGAIN));
}

/** The first model's name, where the service tells it. */
async function firstModel() {
  const headers = key.current() ? { "X-API-Key": key.current() } : {};
  const response = await fetch("v1/models", { headers }).catch(() => null);
  return response?.ok ? (await response.json()).models[0].name : "NAME";
}

/** Opens and shows what the address names. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.matches("details")) target.open = true;
  target.scrollIntoView();
}

function show(api, model) {
  const all = operationsOf(api);
  const groups = api.tags.map(({ name, description }) => {
    const own = all.filter(([, , operation]) => operation.tags.includes(name));
    const id = `tag-${name.toLowerCase().replaceAll(" ", "-")}`;
    const parts = own.map(([path, method, operation]) => operationOf(api, path, method, operation, model));
    for (const part of parts) part.open = part.id === OPENED;
    const items = own.map(([path, method, { operationId }]) => (
      made("li", {}, made("a", { href: `#${operationId}` }, ...heading(path, method)))));
    return {
      section: made("section", { id }, made("h2", {}, name), made("p", {}, ...prose(description ?? "")), ...parts),
      entries: [made("a", { href: `#${id}` }, name), made("ul", {}, ...items)],
    };
  });
  $("operations").replaceChildren(...groups.map(({ section }) => section));
  document.querySelector("#contents nav").replaceChildren(
    ...groups.flatMap(({ entries }) => entries), made("a", { href: "#refusals" }, "Refusals"));
  const [rows, forms] = refusalsOf(api);
  document.querySelector("#refusals dl").replaceChildren(...rows);
  $("forms").replaceChildren(...forms);
  $("refusals").hidden = false;
  openTarget();
}

async function start() {
  const api = await (await fetch("openapi.json")).json();
  $("summary").textContent = api.info.summary ?? "";
  const paragraphs = (api.info.description ?? "").trim().split("\n\n");
  $("about").replaceChildren(...paragraphs.map((text) => made("p", {}, ...prose(text))));
  $("ship").textContent = `curl -O ${origin()}/web/ship.png`;
  const needed = operationsOf(api).some(([, method, operation]) => method === "get" && keyed(operation));
  $("key-form").hidden = !needed;
  $("key-why").textContent = key.current() ? "A key is kept in this tab." : "Run needs a key, kept until the tab closes.";
  $("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = key.keep($("key").value);
    $("key-why").textContent = wrong || "The key is kept in this tab.";
    if (!wrong) {
      $("key").value = "";
      show(api, await firstModel());
    }
  });
  show(api, await firstModel());
}

$("contents").open = WIDE.matches;
WIDE.addEventListener("change", () => { $("contents").open = WIDE.matches; });
$("contents").addEventListener("click", (event) => {
  if (event.target.closest("a") && !WIDE.matches) $("contents").open = false;
});
addEventListener("hashchange", openTarget);
// The same link twice changes nothing in the address.
addEventListener("click", (event) => {
  if (event.target.closest("a")?.hash === location.hash && location.hash) openTarget();
});
start().catch((error) => { $("error").textContent = `Cannot load openapi.json: ${error.message}`; });
