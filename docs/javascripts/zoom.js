/* Pictures enlarge on a click, or on Enter; Escape or another click closes them. */
"use strict";

document.querySelectorAll(".md-content img").forEach((image) => {
  if (image.closest("a") || image.classList.contains("twemoji")) return;
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.setAttribute("aria-label", `${image.alt || "picture"} (enlarge)`);
  const open = () => {
    const dialog = document.createElement("dialog");
    dialog.className = "zoom";
    const large = document.createElement("img");
    large.src = image.src;
    large.alt = image.alt;
    dialog.append(large);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      image.focus();
    });
    document.body.append(dialog);
    dialog.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open();
    }
  });
});
