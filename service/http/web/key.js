import { $ } from "./elements.js";
import { tell } from "./state.js";

const KEY = "resnet-serve-key"; // in sessionStorage, until the tab closes
const REFUSED = "The service does not know this key. Check it for typing errors, or ask for a new one.";
let entering = null;

export const current = () => sessionStorage.getItem(KEY);

/** Keeps a key until the tab closes; returns what is wrong with it, if anything. */
export function keep(text) {
  const key = text.trim();
  if (!key) return "Enter a key first.";
  if (!/^[!-~]+$/.test(key)) return "A key consists of printable ASCII characters without spaces.";
  sessionStorage.setItem(KEY, key);
  return "";
}

function complain(why) {
  $("key-why").textContent = why;
  $("key").setAttribute("aria-invalid", String(Boolean(why)));
}

/** Resolves once the user has entered a key; all waiting requests share one form. */
export function entered(refused) {
  complain(refused ? REFUSED : "");
  entering ??= new Promise((resolve) => {
    tell({ locked: true });
    $("key-form").hidden = false;
    $("key").value = "";
    $("key").focus();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const wrong = keep($("key").value);
      complain(wrong);
      if (wrong) return;
      $("key-form").hidden = true;
      $("key").value = "";
      entering = null;
      tell({ locked: false });
      $("choose").focus({ preventScroll: true }); // The form is no longer there.
      resolve();
    };
  });
  return entering;
}
