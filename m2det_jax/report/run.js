"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = JSON.parse(one("#data").textContent);
  const figures = all(".picture");
  const form = one("#filters");
  const slider = one("#threshold");
  const SVG = "http://www.w3.org/2000/svg";
  const [CORRECT, IGNORED] = [0, 5];

  function add(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  function box(layer, css, [x1, y1, x2, y2], title) {
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
    add(layer, "rect", { class: `under ${css.includes("focus") ? "focus" : ""}`, ...place });
    add(add(layer, "rect", { class: css, ...place }), "title", {}, title);
  }

  // Names of objects stand below their box, names of detections in it.
  function name(layer, css, [x1, y1, x2, y2], width, text, below) {
    const right = x1 > 0.6 * width;
    const x = right ? x2 : x1;
    const y = below ? y2 : y1;
    add(layer, "text", { class: css, x, y, dy: below ? "-0.25em" : "0.95em", "text-anchor": right ? "end" : "start" }, text);
  }

  function draw(figure, threshold) {
    const picture = data.pictures[figure.dataset.number];
    const svg = one("svg", figure);
    const layer = document.createElementNS(SVG, "g");
    layer.setAttribute("class", "layer");
    const texts = [];
    for (const row of picture.truths) {
      const found = row[5] !== null && row[5] >= threshold;
      const title = `${data.names[row[4]]}, ${found ? "found" : "missed"}`;
      box(layer, `truth${found ? "" : " missed"}${row[6] ? " focus" : ""}`, row, title);
      if (row[6] || !found) texts.push(["truth-text", row, data.names[row[4]], true]);
    }
    for (const row of [...picture.found].reverse()) {
      if (row[4] < threshold && !(row[7] && figure.dataset.kind === "suspect")) continue;
      const title = `${data.names[row[5]]} ${Math.round(100 * row[4])} %, ${data.kinds[row[6]]}`;
      box(layer, `found-box k${row[6]}${row[7] ? " focus" : ""}`, row, title);
      if (row[7] || (row[6] !== CORRECT && row[6] !== IGNORED)) {
        texts.push(["found-text", row, `${data.names[row[5]]} ${Math.round(100 * row[4])}%`, false]);
      }
    }
    for (const [css, row, text, below] of texts) name(layer, css, row, picture.width, text, below);
    svg.replaceChildren(layer);
  }

  function filter(threshold) {
    let shown = 0;
    for (const figure of figures) {
      const { kind, labels, score } = figure.dataset;
      const reached = score !== "" && Number(score) >= threshold;
      const label = form.elements.label.value;
      const passes = { missed: !reached, suspect: true }[kind] ?? reached;
      figure.hidden = !(passes
        && (!form.elements.kind.value || form.elements.kind.value === kind)
        && (!label || labels.split(" ").includes(label)));
      if (!figure.hidden) {
        shown += 1;
        draw(figure, threshold);
      }
    }
    one("#shown").textContent = `${shown} of ${figures.length} shown`;
    one("#none").hidden = shown > 0;
  }

  const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

  function count(step) {
    for (const row of all("#counts-table tbody tr")) {
      const entry = data.counts[row.dataset.row];
      const numbers = entry.found.map((kind) => kind[step]);
      const right = numbers[CORRECT];
      const tried = numbers.reduce((sum, n) => sum + n, 0);
      const cells = [...numbers, entry.truths - right].map((n) => n.toLocaleString("en"));
      cells.push(share(right, tried), share(right, entry.truths));
      cells.forEach((text, i) => { row.cells[i + 1].textContent = text; });
    }
  }

  function update() {
    const step = Number(slider.value);
    one("#threshold-text").textContent = (step / 100).toFixed(2);
    slider.setAttribute("aria-valuetext", (step / 100).toFixed(2));
    count(step);
    filter(step / 100);
  }

  slider.addEventListener("input", update);
  form.addEventListener("input", () => filter(Number(slider.value) / 100));
  for (const some of all("form")) some.addEventListener("submit", (event) => event.preventDefault());
  one("#best-threshold").addEventListener("click", () => { slider.value = data.best; update(); });
  update();
})();
