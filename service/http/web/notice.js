// What went wrong with the chosen picture, and what can be done about it.

import { $, made, prose } from "./elements.js";
import { wordsFor } from "./words.js";

let shown = null; // the refusal

/** Shows a picture's error, or what it waits for; hides the notice if there is neither. */
export function showNotice({ error, wait }) {
  const refusal = error ?? wait?.refusal ?? null;
  $("notice").hidden = !refusal;
  $("notice").classList.toggle("waiting", Boolean(wait));
  $("notice").classList.toggle("telling", refusal?.reason === "no_classes");
  // The alert is read out whenever it is set; the seconds beside it are not.
  if (refusal !== shown) {
    shown = refusal;
    const { title, remedy } = wordsFor(refusal?.reason);
    $("error").replaceChildren(...(refusal ? [made("strong", {}, title), " ", remedy] : []));
    $("technical").hidden = !refusal?.detail;
    $("technical").open = false;
    $("detail").replaceChildren(...prose(refusal?.detail ?? ""));
  }
  $("wait").hidden = !wait;
  $("again").textContent = wait ? `Your image is sent again in ${wait.seconds}\u00a0s.` : "";
  $("retry").hidden = !error || !wordsFor(error.reason).again;
}
