import { $ } from "./elements.js";

const KEY = "resnet-serve-key"; // in the tab's own storage, until it closes
let entering = null;

export const current = () => sessionStorage.getItem(KEY);

/** Resolves when a person has entered a key; however many requests wait, there is one form. */
export function entered(why) {
  $("key-why").textContent = why;
  entering ??= new Promise((resolve) => {
    $("key-form").hidden = false;
    $("key").value = "";
    $("key").focus();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const given = $("key").value.trim();
      if (!/^[!-~]+$/.test(given)) {
        $("key-why").textContent = "A key is printable ASCII, without spaces.";
        return;
      }
      sessionStorage.setItem(KEY, given);
      $("key-form").hidden = true;
      $("key").value = "";
      entering = null;
      resolve();
    };
  });
  return entering;
}
