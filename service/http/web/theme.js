// The chosen theme. No module, so that it runs before anything is drawn.

(() => {
  const NAME = "resnet-serve-theme"; // in localStorage; absent: as the system has it
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(NAME) ?? "";
    } catch {
      return ""; // The browser keeps nothing for this site.
    }
  }

  function show(theme) {
    if (["light", "dark"].includes(theme)) root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  function keep(theme) {
    try {
      if (theme) localStorage.setItem(NAME, theme);
      else localStorage.removeItem(NAME);
    } catch {
      // The theme lasts until the page is left.
    }
  }

  show(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = root.dataset.theme ?? "";
    choice.addEventListener("change", () => {
      show(choice.value);
      keep(choice.value);
    });
    addEventListener("storage", (event) => { // In another tab.
      if (event.key !== NAME) return;
      show(event.newValue);
      choice.value = root.dataset.theme ?? "";
    });
  });
})();
