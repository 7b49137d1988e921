"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const data = JSON.parse(one("#data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const slider = one("#threshold");
  const picture = one("#picture");
  const shot = one(".shot");
  const hidden = new Set(); // classes that are not shown
  let answer = null;
  let request = null;

  const colour = (label) => `hsl(${((0.02 + label * 0.618034) % 1) * 360} 85% ${[62, 72, 52][Math.floor(label / 8) % 3]}%)`;
  const percent = (score) => `${Math.floor(100 * score)} %`;

  function say(text, css = "") {
    one("#status").textContent = text;
    one("#status").className = css;
    if (css === "bad") one("#status").scrollIntoView({ block: "nearest" });
  }

  function make(name, attributes = {}, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // What the answer has above the slider, of the classes that are shown; the surest first.
  function above() {
    const limit = slider.value / 100;
    return answer.scores.map((score, i) => i).filter((i) => answer.scores[i] > limit);
  }

  function boxOf(i) {
    const [x1, y1, x2, y2] = answer.boxes[i];
    const width = answer.image_size.width;
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
    const group = make("g", { "data-box": i });
    const box = make("rect", place);
    box.style.stroke = colour(answer.labels[i]);
    box.append(make("title", {}, `${answer.names[i]} ${percent(answer.scores[i])}`));
    const right = x1 > 0.6 * width;
    const text = make("text", { x: right ? x2 : x1, y: y1, dy: "0.95em", "text-anchor": right ? "end" : "start" }, `${answer.names[i]} ${percent(answer.scores[i])}`);
    group.append(make("rect", { class: "under", ...place }), box, text);
    return group;
  }

  function mark(i, on) {
    const group = one(`[data-box="${i}"]`);
    if (!group) return;
    group.classList.toggle("marked", on);
    if (on) group.parentNode.append(group);
  }

  function objectOf(i) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const score = document.createElement("b");
    button.type = "button";
    button.append(answer.names[i], score);
    score.textContent = percent(answer.scores[i]);
    for (const [event, on] of [["focus", true], ["blur", false], ["mouseenter", true], ["mouseleave", false]]) {
      button.addEventListener(event, () => mark(i, on));
    }
    item.append(button);
    return item;
  }

  function classOf(label, number) {
    const item = document.createElement("li");
    const row = document.createElement("label");
    const box = document.createElement("input");
    const swatch = document.createElement("span");
    const count = document.createElement("span");
    row.className = "check";
    box.type = "checkbox";
    box.checked = !hidden.has(label);
    box.dataset.label = label;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(label);
      else hidden.add(label);
      redraw();
      one(`#classes [data-label="${label}"]`).focus();
    });
    swatch.className = "swatch";
    swatch.style.background = colour(label);
    count.className = "number";
    count.textContent = number;
    row.append(box, swatch, data.names[label] ?? String(label), count);
    item.append(row);
    return item;
  }

  function redraw() {
    one("#threshold-text").textContent = (slider.value / 100).toFixed(2);
    if (!answer) return;
    const found = above();
    const numbers = new Map();
    for (const i of found) numbers.set(answer.labels[i], (numbers.get(answer.labels[i]) ?? 0) + 1);
    const labels = [...numbers.keys()].sort((a, b) => numbers.get(b) - numbers.get(a) || a - b);
    one("#classes").replaceChildren(...labels.map((label) => classOf(label, numbers.get(label))));
    const shown = found.filter((i) => !hidden.has(answer.labels[i]));
    one("#boxes").replaceChildren(...shown.map(boxOf).reverse());
    one("#objects").replaceChildren(...shown.map(objectOf));
    one("#shown").textContent = `${shown.length} object${shown.length === 1 ? "" : "s"}`;
  }

  // Names have the same size on the screen, however large the image is.
  function fitText() {
    const width = one("#frame").clientWidth;
    if (answer && width) one("#boxes").style.setProperty("--text", `${(13 * answer.image_size.width) / width}px`);
  }

  function show(found, file) {
    answer = found;
    hidden.clear();
    const { width, height } = found.image_size;
    one("#frame").style.aspectRatio = `${width} / ${height}`;
    one("#frame").style.setProperty("--ratio", width / height);
    one("#boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
    URL.revokeObjectURL(picture.src);
    shot.classList.remove("blind");
    picture.src = URL.createObjectURL(file);
    one("#caption").textContent = `${file.name ?? "camera"}, ${width} x ${height}`;
    one("#result").hidden = false;
    redraw();
    fitText();
    say("");
    one("#result").focus({ preventScroll: true });
    one("#result").scrollIntoView({ block: "nearest" });
  }

  picture.addEventListener("error", () => {
    if (!picture.src) return;
    shot.classList.add("blind");
    say("This browser cannot show the format of the image. The boxes are those of the image.");
  });

  async function detect(file) {
    if (!file) return;
    close();
    request?.abort();
    const mine = (request = new AbortController());
    if (file.size > data.maxBody) {
      say(`The image has ${(file.size / 2 ** 20).toFixed(0)} MiB, the limit is ${(data.maxBody / 2 ** 20).toFixed(0)} MiB. Make it smaller.`, "bad");
      return;
    }
    say("Looking at the image ...", "busy");
    let said = "The service does not answer. Is it running, and is this device still connected?";
    try {
      const response = await fetch(`predict?threshold=${data.lowest}`, { method: "POST", body: file, headers: { Accept: "application/json" }, signal: mine.signal });
      const found = await response.json();
      if (response.ok) {
        show(found, file);
        return;
      }
      said = `${found.error}.`;
      if (found.expected) said += ` Expected: ${found.expected}.`;
      if (found.remedy) said += ` What to do: ${found.remedy}.`;
    } catch (error) {
      if (mine.signal.aborted) return;
    }
    say(said, "bad");
  }

  for (const input of [one("#file"), one("#photo")]) {
    input.addEventListener("change", () => {
      detect(input.files[0]);
      input.value = ""; // the same file may be chosen again
    });
  }
  slider.addEventListener("input", redraw);
  new ResizeObserver(fitText).observe(one("#frame"));
  one("#cut").addEventListener("submit", (event) => event.preventDefault());

  const zone = one("#choose");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) detect(file);
    else say("That is no file. Save the image first, then drop the file.", "bad");
  });
  addEventListener("paste", (event) => detect(event.clipboardData?.files[0]));

  // The camera of the browser needs https, or a page of this machine. Over plain http, phones take
  // a photo with the file input.
  const video = one("#video");

  function close() {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    one("#live").hidden = true;
  }

  if (isSecureContext && navigator.mediaDevices?.getUserMedia) {
    one("#camera").hidden = false;
    one("#camera").addEventListener("click", async () => {
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
        one("#live").hidden = false;
        one("#shoot").focus({ preventScroll: true });
      } catch (error) {
        say(`The camera cannot be used (${error.name}). Choose an image instead.`, "bad");
      }
    });
    video.addEventListener("loadedmetadata", () => one("#live").scrollIntoView({ block: "center" }));
    one("#shoot").addEventListener("click", () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      if (!canvas.width) return;
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob(detect, "image/jpeg", 0.92);
    });
    one("#stop").addEventListener("click", () => {
      close();
      one("#camera").focus();
    });
    addEventListener("pagehide", close);
  }
  redraw();
})();
