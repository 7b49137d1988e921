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

  // Toggles: a class of the body each; the same toggle may be there twice.
  for (const box of all("[data-toggle]")) {
    box.addEventListener("change", () => {
      document.body.classList.toggle(box.dataset.toggle, box.checked);
      for (const twin of all(`[data-toggle="${box.dataset.toggle}"]`)) twin.checked = box.checked;
    });
  }

  // Pictures: arrow keys go from one to the next, Enter enlarges.
  const viewer = one("#viewer");
  let current = null;
  const visible = (button) => button.offsetParent !== null;
  const buttons = () => all(".picture .open").filter(visible);

  function show(button) {
    current = button;
    const figure = button.closest("figure");
    const frame = one(".frame", button).cloneNode(true);
    one("img", frame).loading = "eager";
    const size = one("img", frame);
    frame.style.setProperty("--ratio", size.getAttribute("width") / size.getAttribute("height"));
    one("#viewer-frame").replaceChildren(frame);
    const place = buttons();
    const caption = all("figcaption > *", figure).map((part) => part.textContent).join(" · ");
    one("#viewer-caption").textContent = `${place.indexOf(button) + 1}/${place.length} · ${caption}`;
    if (!viewer.open) viewer.showModal();
  }

  function step(from, by) {
    const place = buttons();
    return place[(place.indexOf(from) + by + place.length) % place.length];
  }

  const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
  for (const button of all(".picture .open")) {
    button.addEventListener("click", () => show(button));
    button.addEventListener("keydown", (event) => {
      if (!(event.key in STEPS)) return;
      event.preventDefault();
      step(button, STEPS[event.key]).focus();
    });
  }
  // The picture last seen has the focus as the viewer closes. At once, not at the close event: that
  // comes later, when the next key may have moved on. Left for the event: Android's back gesture.
  function goBack() {
    if (current) current.focus();
    current = null;
  }

  function leave() {
    viewer.close();
    goBack();
  }

  viewer.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      leave();
    } else if (event.key in STEPS) {
      event.preventDefault();
      show(step(current, STEPS[event.key]));
    }
  });
  viewer.addEventListener("close", goBack);
  viewer.addEventListener("click", (event) => { if (event.target === viewer) leave(); });
  one("#viewer-close").addEventListener("click", leave);
  for (const button of all("[data-step]", viewer)) {
    button.addEventListener("click", () => show(step(current, Number(button.dataset.step))));
  }

  // The table of classes, sorted by any column: names upwards, numbers downwards first.
  const classes = one("#classes-table");
  const sorters = all(".sort", classes);
  sorters.forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const order = head.getAttribute("aria-sort");
      const down = order ? order === "ascending" : column > 0;
      for (const other of all("th", classes.tHead)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const value = (row) => column ? Number(row.cells[column].dataset.value) : row.cells[0].textContent;
      const compare = (a, b) => column ? value(a) - value(b) : value(a).localeCompare(value(b));
      const body = classes.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });

  // Light or dark: the system's choice until the button is used.
  const theme = one("#theme");
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => {
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(dark));
  };
  theme.addEventListener("click", () => {
    dark = !dark;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    name();
  });
  name();
})();
