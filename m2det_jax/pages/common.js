"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

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

  // A page may have no viewer.
  if (viewer) {
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
  }

  // The table of classes, sorted by any column: names upwards, numbers downwards first.
  const classes = one("#classes-table");
  const sorters = classes ? all(".sort", classes) : [];
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
