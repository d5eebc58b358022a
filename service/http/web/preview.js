// The chosen picture, as large as there is room, and which part of it the network sees.

import { $ } from "./elements.js";

const TINY = 128; // pixels below which each of them is worth seeing
const ENLARGED = [384, 640]; // pixels that smaller images are enlarged to, and on wide windows
const HEIGHTS = [0.3, 0.6]; // shares of the window's height that an image may take, and beside the results
const LOWEST = 200; // pixels that it may take at least
const BESIDE = matchMedia("(min-width: 52rem)");
const WIDE = matchMedia("(min-width: 100rem)");
const EDGE = 0.005; // a share of the image that nobody sees

export const isTiny = (image) => Math.max(image.naturalWidth, image.naturalHeight) < TINY;

/** Fits the picture into its card, and the window of a phone. */
export function fit() {
  const image = $("preview");
  const { naturalWidth: width, naturalHeight: height } = image;
  if (!width || $("picture").hidden) return;
  const high = Math.max(LOWEST, HEIGHTS[Number(BESIDE.matches)] * innerHeight);
  const room = Math.min($("frame").clientWidth / width, high / height);
  const enlarged = Math.max(1, ENLARGED[Number(WIDE.matches)] / Math.max(width, height));
  const times = Math.min(room, enlarged);
  const tiny = isTiny(image);
  image.classList.toggle("tiny", tiny);
  image.setAttribute("width", Math.max(1, Math.round(width * (tiny && times > 1 ? Math.floor(times) : times))));
}

/** Outlines the part of the image that the network sees, and says so; null: hides the outline. */
export function showRegion(region) {
  const { left, top, width, height } = region ?? {};
  const cut = region && (width < 1 - EDGE || height < 1 - EDGE);
  const bordered = region && (width > 1 + EDGE || height > 1 + EDGE);
  $("crop").hidden = !cut;
  for (const [side, share] of Object.entries(cut ? { left, top, width, height } : {})) {
    $("crop").style[side] = `${100 * share}%`;
  }
  let words = "";
  if (cut) words = "Outlined: what the network sees. The dimmed edges are cut off.";
  else if (bordered) words = "The network sees the whole image, with a border added.";
  $("seen").textContent = words;
}

addEventListener("resize", fit);
