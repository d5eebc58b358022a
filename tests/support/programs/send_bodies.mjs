// Sends the image at PATH to URL in each form that fetch knows, and prints the responses as JSON.
import { readFileSync } from "node:fs";

const [url, path] = process.argv.slice(2);
const data = readFileSync(path), text = data.toString("base64");
const form = (value, ...name) => {
  const form = new FormData();
  form.append("image", value, ...name);
  return form;
};
const bodies = [
  data, new Blob([data]), new Blob([data], { type: "image/png" }), JSON.stringify({ image: text }),
  form(new Blob([data])), form(new Blob([data], { type: "image/png" }), "a \"b\".png"),
  form(`data:image/png;base64,${text}`), form(text), new URLSearchParams({ image: text }),
];
const answers = [];
for (const body of bodies) answers.push(await (await fetch(url, { method: "POST", body })).json());
console.log(JSON.stringify(answers));
