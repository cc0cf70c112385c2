// Closes a dropdown menu that stays open after its field lost the focus.
//
// Gradio 6.31 handles the Tab key only after the field lost the focus, and opens the menu again. The
// menu then covers the form, whatever is clicked or pressed.

document.addEventListener("focusout", ({ target }) => {
  if (target.getAttribute?.("role") !== "combobox") return;
  setTimeout(() => {
    const left = document.activeElement !== target;
    if (left && target.getAttribute("aria-expanded") === "true") {
      target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    }
  }, 100);
});
