import { $ } from "./elements.js";

const KEY = "resnet-serve-key"; // in sessionStorage, until the tab closes
let entering = null;

export const current = () => sessionStorage.getItem(KEY);

/** Resolves once the user has entered a key; all waiting requests share one form. */
export function entered(why) {
  $("key-why").textContent = why;
  entering ??= new Promise((resolve) => {
    $("key-form").hidden = false;
    $("key").value = "";
    $("key").focus();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      if (!/^[!-~]+$/.test(key)) {
        $("key-why").textContent = "A key consists of printable ASCII characters without spaces.";
        return;
      }
      sessionStorage.setItem(KEY, key);
      $("key-form").hidden = true;
      $("key").value = "";
      entering = null;
      resolve();
    };
  });
  return entering;
}
