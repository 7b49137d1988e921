"use strict";
(() => {
  const form = document.querySelector("#filters");
  const figures = [...document.querySelectorAll(".picture")];

  function filter() {
    const { kind, label } = form.elements;
    let shown = 0;
    for (const figure of figures) {
      figure.hidden = (kind.value && kind.value !== figure.dataset.kind)
        || (label.value && label.value !== figure.dataset.label);
      shown += !figure.hidden;
    }
    document.querySelector("#shown").textContent = `${shown} of ${figures.length} shown`;
    document.querySelector("#none").hidden = shown > 0;
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
