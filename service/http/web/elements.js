/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/** An HTML or SVG element with attributes and children. */
export function made(tag, attributes = {}, ...children) {
  const svg = ["svg", "path"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A text's parts in backticks as code. */
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? made("code", {}, part) : part));
}

/** A file's name, without the middle of a long one. */
export function shortened(name) {
  const letters = [...name];
  return letters.length > 60 ? `${letters.slice(0, 40).join("")}…${letters.slice(-15).join("")}` : name;
}

/** A share from 0 to 1 as a percentage, without line breaks. */
export function percent(share) {
  return share < 0.0005 ? "<\u00a00.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;
}

/** The probability of a label that shares no 100 % with others, with three digits. */
export function alone(probability) {
  return probability < 0.0005 ? "<\u00a00.001" : probability.toFixed(3);
}

/** A duration given in milliseconds, with three digits. */
export function milliseconds(time) {
  return time >= 1000 ? `${(time / 1000).toFixed(2)} s` : `${time.toFixed(time < 100 ? 1 : 0)} ms`;
}
