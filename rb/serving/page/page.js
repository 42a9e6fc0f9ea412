// The page of `rb demo`: a photo, boxes in its pixels, their captions by every model that is ticked. Talks to its own server only.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id), SVG = "http://www.w3.org/2000/svg";
  const photo = $("photo"), svg = $("boxes"), status = $("status");
  let file = null, boxes = [], chosen = -1, models = [], drag = null, asked = 0;

  const say = (text, wrong = false) => { status.textContent = text; status.classList.toggle("wrong", wrong); };
  const size = () => [photo.naturalWidth, photo.naturalHeight];
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const rounded = (at) => at.map((v) => +v.toFixed(1)); // as the address holds a box and the server gets it
  const ticked = () => [...document.querySelectorAll("#models input:checked")].map((input) => input.value);
  const element = (name, attributes = {}, text = "") => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };

  // -- the address holds boxes and models, not the photo --
  function remember() {
    const words = boxes.map((box) => rounded(box.at).join(",")).join(";");
    history.replaceState(null, "", `#boxes=${words}&models=${ticked().map(encodeURIComponent).join(",")}`);
  }
  function remembered() {
    const found = Object.fromEntries(location.hash.slice(1).split("&").map((part) => part.split("=")));
    const rows = (found.boxes || "").split(";").map((row) => row.split(",").map(Number));
    return {
      boxes: rows.filter((row) => row.length === 4 && row.every(Number.isFinite)),
      models: found.models ? found.models.split(",").map(decodeURIComponent) : null,
    };
  }

  // -- drawing --
  function pixel(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()), [w, h] = size();
    return [clamp(at.x, 0, w), clamp(at.y, 0, h)];
  }
  const unit = () => size()[0] / svg.getBoundingClientRect().width; // photo pixels of one pixel of the page
  function draw() {
    const focused = document.activeElement?.dataset?.box;
    svg.replaceChildren();
    boxes.forEach((box, i) => {
      const [x1, y1, x2, y2] = box.at, u = unit();
      const group = element("g", {
        class: i === chosen ? "box chosen" : "box", tabindex: 0, role: "button", "data-box": i, "aria-pressed": i === chosen,
        "aria-label": `Box ${i + 1}: ${box.at.map(Math.round).join(", ")}`,
      });
      for (const kind of ["under", "over"]) group.append(element("rect", { class: kind, x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
      const number = element("text", { x: x1 + 5 * u, y: y1 + 18 * u }, i + 1);
      number.setAttribute("font-size", 16 * u);
      number.style.fontSize = `${16 * u}px`;
      number.style.strokeWidth = `${3 * u}px`;
      group.append(number);
      if (i === chosen) for (const [k, [x, y]] of [[x1, y1], [x2, y1], [x2, y2], [x1, y2]].entries())
        group.append(element("circle", { class: k % 2 ? "handle turned" : "handle", cx: x, cy: y, r: 7 * u, "data-corner": k }));
      svg.append(group);
    });
    if (focused !== undefined) svg.querySelector(`[data-box="${focused}"]`)?.focus();
    list();
  }
  function list() {
    const names = ticked();
    $("head").replaceChildren(...["Box", ...names, ""].map((name) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      return cell;
    }));
    $("rows").replaceChildren(...boxes.map((box, i) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      row.className = i === chosen ? "chosen" : "";
      head.scope = "row";
      head.textContent = `${i + 1}`;
      row.append(head, ...names.map((name) => {
        const cell = document.createElement("td"), answer = box.captions[name];
        cell.textContent = answer ? answer.caption : "";
        if (answer) {
          const score = document.createElement("small");
          score.textContent = `log-probability ${answer.log_probability.toFixed(2)}`;
          cell.append(score);
        }
        return cell;
      }));
      const last = document.createElement("td"), button = document.createElement("button");
      button.type = "button";
      button.textContent = "Delete";
      button.setAttribute("aria-label", `Delete box ${i + 1}`);
      button.addEventListener("click", () => remove(i));
      last.append(button);
      row.append(last);
      return row;
    }));
    $("ask").disabled = !boxes.length || !names.length;
    $("save").disabled = !file;
    $("add").disabled = !file;
  }
  function changed(i) {
    if (i >= 0 && boxes[i]) boxes[i].captions = {};
    draw();
    remember();
  }
  function remove(i) {
    boxes.splice(i, 1);
    chosen = Math.min(chosen, boxes.length - 1);
    changed(-1);
    (svg.querySelector(`[data-box="${chosen}"]`) || $("add")).focus();
  }
  function add(at) {
    boxes.push({ at, captions: {} });
    chosen = boxes.length - 1;
  }

  // -- mouse and touch --
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const target = event.target, group = target.closest(".box"), at = pixel(event);
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (group) {
      chosen = Number(group.dataset.box);
      const corner = target.dataset.corner, [x1, y1, x2, y2] = boxes[chosen].at;
      drag = corner === undefined
        ? { move: at, from: [x1, y1, x2, y2] }
        : { fixed: [[x2, y2], [x1, y2], [x1, y1], [x2, y1]][corner] };
      draw();
      svg.querySelector(`[data-box="${chosen}"]`).focus();
    } else drag = { fixed: at, fresh: true };
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const at = pixel(event), [w, h] = size();
    if (drag.move) {
      const [x1, y1, x2, y2] = drag.from;
      const dx = clamp(at[0] - drag.move[0], -x1, w - x2), dy = clamp(at[1] - drag.move[1], -y1, h - y2);
      if (!dx && !dy) return;
      boxes[chosen].at = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
    } else {
      const [a, b] = [drag.fixed, at];
      const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
      if (Math.min(box[2] - box[0], box[3] - box[1]) < 3 * unit()) return; // a click is no box
      if (drag.fresh) add(box);
      else boxes[chosen].at = box;
      drag.fresh = false;
    }
    boxes[chosen].captions = {};
    draw();
  });
  const end = () => {
    if (drag) remember();
    drag = null;
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);

  // -- keyboard --
  svg.addEventListener("focusin", (event) => {
    const group = event.target.closest(".box");
    if (!group || Number(group.dataset.box) === chosen || drag) return;
    chosen = Number(group.dataset.box);
    draw();
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (chosen < 0) return;
    if (event.key === "Delete" || event.key === "Backspace") remove(chosen);
    else if (event.key === "Enter") ask();
    else if (step) {
      const [w, h] = size(), by = Math.max(1, Math.round(Math.max(w, h) / 100)), box = boxes[chosen].at;
      const [dx, dy] = step.map((v) => v * by);
      if (event.shiftKey) boxes[chosen].at = [box[0], box[1], clamp(box[2] + dx, box[0] + 2, w), clamp(box[3] + dy, box[1] + 2, h)];
      else {
        const x = clamp(dx, -box[0], w - box[2]), y = clamp(dy, -box[1], h - box[3]);
        boxes[chosen].at = [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
      }
      changed(chosen);
    } else return;
    event.preventDefault();
  });
  $("add").addEventListener("click", () => {
    const [w, h] = size();
    add([w / 3, h / 3, (2 * w) / 3, (2 * h) / 3]);
    changed(chosen);
    svg.querySelector(`[data-box="${chosen}"]`).focus();
  });

  // -- the photo --
  function open(given) {
    if (!given) return;
    if (!/^image\/(jpeg|png|webp)$/.test(given.type)) return say("This is no JPEG, PNG or WebP photo.", true);
    const first = !file;
    URL.revokeObjectURL(photo.src);
    photo.onload = () => {
      file = given;
      const [w, h] = size();
      svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
      $("frame").hidden = false;
      $("empty").hidden = true;
      const kept = first ? remembered().boxes.filter(([x1, y1, x2, y2]) => x1 >= 0 && y1 >= 0 && x1 < x2 && y1 < y2 && x2 <= w && y2 <= h) : [];
      boxes = kept.map((at) => ({ at, captions: {} }));
      chosen = boxes.length - 1;
      say(`${given.name || "Photo"}: ${w} x ${h} pixels.`);
      changed(-1);
    };
    photo.onerror = () => say("This photo cannot be read.", true);
    photo.src = URL.createObjectURL(given);
  }
  $("file").addEventListener("change", (event) => open(event.target.files[0]));
  document.addEventListener("paste", (event) => open([...event.clipboardData.files][0]));
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
  window.addEventListener("resize", () => { if (file) draw(); });

  // -- captions --
  async function ask() {
    const mine = ++asked, now = boxes.map((box) => ({ box, at: box.at }));
    if (!now.length) return;
    say("Reading ...");
    try {
      await Promise.all(ticked().map(async (model) => {
        const form = new FormData();
        form.append("image", file);
        form.append("model", model);
        form.append("boxes", JSON.stringify(now.map(({ at }) => rounded(at))));
        const answer = await fetch("v1/regions", { method: "POST", body: form }), body = await answer.json();
        if (!answer.ok) throw new Error(body.error.message);
        body.captions.forEach((row, i) => { if (now[i].box.at === now[i].at) now[i].box.captions[model] = row; });
      }));
      if (mine === asked) say(`${now.length} ${now.length === 1 ? "box" : "boxes"} captioned.`);
    } catch (error) {
      say(error.message, true);
    }
    draw();
  }
  $("ask").addEventListener("click", ask);

  // -- one file with photo, boxes and captions --
  $("save").addEventListener("click", async () => {
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });
    const page = document.implementation.createHTMLDocument("Boxes and captions"), [w, h] = size();
    const style = page.createElement("style"), figure = page.createElement("div"), image = page.createElement("img");
    style.textContent = "body{font:15px system-ui;margin:20px}div{position:relative;display:inline-block}img{max-width:100%;display:block}" +
      "svg{position:absolute;inset:0;width:100%;height:100%}rect{fill:none;stroke:#ff2d55;stroke-width:2px;vector-effect:non-scaling-stroke}" +
      "th,td{text-align:left;padding:6px 12px 6px 0;vertical-align:top}small{display:block}circle,button{display:none}";
    image.src = url;
    image.alt = "The photo";
    figure.append(image, svg.cloneNode(true));
    page.head.append(style);
    page.body.append(figure, document.querySelector("table").cloneNode(true));
    figure.dataset.boxes = JSON.stringify({ size: [w, h], boxes: boxes.map((box) => ({ box: rounded(box.at), captions: box.captions })) });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["<!DOCTYPE html>\n", page.documentElement.outerHTML], { type: "text/html" }));
    link.download = "boxes.html";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  fetch("v1/models").then((answer) => answer.json()).then((body) => {
    const wanted = remembered().models;
    models = body.data.filter((row) => row.kind !== "checkpoint" || row.modalities.includes("image_region"));
    for (const [i, row] of models.entries()) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "checkbox", value: row.id, checked: wanted ? wanted.includes(row.id) : i === 0 || row.kind !== "checkpoint" });
      input.addEventListener("change", () => { list(); remember(); });
      label.append(input, ` ${row.id}`);
      $("models").append(label);
    }
    list();
  }).catch(() => say("The server does not answer.", true));
})();
