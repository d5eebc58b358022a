import { $ } from "./elements.js";

const KEY = "resnet-serve-key"; // in sessionStorage, until the tab closes
let entering = null;

export const current = () => sessionStorage.getItem(KEY);

/** Keeps a key until the tab closes; returns what is wrong with it, if anything. */
export function keep(text) {
  const key = text.trim();
  if (!/^[!-~]+$/.test(key)) return "A key consists of printable ASCII characters without spaces.";
  sessionStorage.setItem(KEY, key);
  return "";
}

/** Resolves once the user has entered a key; all waiting requests share one form. */
export function entered(why) {
  $("key-why").textContent = why;
  entering ??= new Promise((resolve) => {
    $("key-form").hidden = false;
    $("key").value = "";
    $("key").focus();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const wrong = keep($("key").value);
      if (wrong) {
        $("key-why").textContent = wrong;
        return;
      }
      $("key-form").hidden = true;
      $("key").value = "";
      entering = null;
      resolve();
    };
  });
  return entering;
}
