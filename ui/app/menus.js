// Closes a menu that its field has left open.
//
// Gradio 6.31 hears a Tab only after the field lost the focus, and opens the menu again: it then
// covers the form, whatever is clicked or pressed.

document.addEventListener("focusout", ({ target }) => {
  if (target.getAttribute?.("role") !== "combobox") return;
  setTimeout(() => {
    const left = document.activeElement !== target;
    if (left && target.getAttribute("aria-expanded") === "true") {
      target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    }
  }, 100);
});
