"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Filters of the findings. The address keeps them, so that a filtered page can be linked to.
  const form = one("#filters");
  const rows = all("#findings-table tbody tr");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const PAGE = 100;
  let limit = PAGE;

  function filter() {
    const kind = form.elements.kind.value;
    const text = form.elements.text.value.trim().toLowerCase();
    const severities = new Set(all("[name=severity]:checked", form).map((box) => box.value));
    let found = 0;
    for (const row of rows) {
      const fits = (!kind || row.dataset.kind === kind) && severities.has(row.dataset.severity)
        && (!text || texts.get(row).includes(text));
      found += fits;
      row.hidden = !fits || found > limit;
    }
    const shown = Math.min(found, limit);
    one("#shown").textContent = `${shown.toLocaleString("en")} of ${found.toLocaleString("en")} shown`;
    one("#more").hidden = found <= limit;
    const state = new URLSearchParams();
    if (kind) state.set("kind", kind);
    if (text) state.set("text", text);
    if (severities.size < 3) state.set("severity", [...severities].join(" "));
    return state.toString();
  }

  function filterAnew() {
    limit = PAGE;
    const state = filter();
    history.replaceState(null, "", state ? `#${state}` : "#findings");
  }

  if (form) {
    const state = new URLSearchParams(location.hash.slice(1));
    if (state.has("kind")) form.elements.kind.value = state.get("kind");
    if (state.has("text")) form.elements.text.value = state.get("text");
    if (state.has("severity")) {
      const wanted = state.get("severity").split(" ");
      for (const box of all("[name=severity]", form)) box.checked = wanted.includes(box.value);
    }
    form.addEventListener("input", filterAnew);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filterAnew));
    one("#more").addEventListener("click", () => { limit += 5 * PAGE; filter(); });
    for (const button of all("[data-show]")) {
      button.addEventListener("click", () => {
        form.reset();
        form.elements.kind.value = button.dataset.show;
        setTimeout(() => {
          form.elements.kind.value = button.dataset.show;
          filterAnew();
          form.scrollIntoView({ block: "start" });
          form.elements.kind.focus({ preventScroll: true });
        });
      });
    }
    filter();
  }
})();
