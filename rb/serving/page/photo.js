// The stage for photos: boxes are drawn, moved and shaped on it by mouse, touch and keyboard, in pixels of the upright photo.

const LEAST_WIDTH = 480; // smaller photos are shown so wide, in pixels of the page

export function photoStage(app, { photo, svg, frame }) {
  let drag = null;
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const size = () => [photo.naturalWidth, photo.naturalHeight];
  const unit = () => size()[0] / svg.getBoundingClientRect().width; // photo pixels of one pixel of the page
  function pixel(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()), [w, h] = size();
    return [clamp(at.x, 0, w), clamp(at.y, 0, h)];
  }
  const group = (i) => svg.querySelector(`[data-box="${i}"]`);

  function fit() { // small photos larger, large ones into the window
    const [w, h] = size(), wide = frame.parentElement.clientWidth - 16, high = 0.72 * window.innerHeight;
    photo.style.width = `${Math.min(Math.max(w, LEAST_WIDTH), wide, (high * w) / h)}px`;
  }

  function draw() {
    if (!svg.getBoundingClientRect().width) return; // nothing of it is seen, as in a window of no width
    const focused = document.activeElement?.dataset?.box, u = unit();
    svg.replaceChildren(...app.boxes.map((box, i) => {
      const [x1, y1, x2, y2] = box.at;
      const made = app.element("g", {
        class: i === app.chosen ? "box chosen" : "box", tabindex: 0, role: "button", "data-box": i, "aria-pressed": i === app.chosen,
        "aria-label": `Box ${i + 1}: ${box.at.map(Math.round).join(", ")}`,
      });
      for (const kind of ["under", "over"]) made.append(app.element("rect", { class: kind, x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
      const number = app.element("text", { x: x1 + 5 * u, y: y1 + 18 * u, "font-size": 16 * u }, i + 1);
      number.style.fontSize = `${16 * u}px`;
      number.style.strokeWidth = `${3 * u}px`;
      made.append(number);
      if (i === app.chosen) for (const [k, [x, y]] of [[x1, y1], [x2, y1], [x2, y2], [x1, y2]].entries())
        made.append(app.element("circle", { class: k % 2 ? "handle turned" : "handle", cx: x, cy: y, r: 7 * u, "data-corner": k }));
      return made;
    }));
    if (focused !== undefined) group(focused)?.focus();
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const target = event.target, box = target.closest(".box"), at = pixel(event);
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (!box) { drag = { fixed: at, fresh: true }; return; }
    const i = Number(box.dataset.box), corner = target.dataset.corner, [x1, y1, x2, y2] = app.boxes[i].at;
    drag = corner === undefined ? { move: at, from: [x1, y1, x2, y2] } : { fixed: [[x2, y2], [x1, y2], [x1, y1], [x2, y1]][corner] };
    app.choose(i);
    group(i).focus();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const at = pixel(event), [w, h] = size();
    let box;
    if (drag.move) {
      const [x1, y1, x2, y2] = drag.from;
      const dx = clamp(at[0] - drag.move[0], -x1, w - x2), dy = clamp(at[1] - drag.move[1], -y1, h - y2);
      if (!dx && !dy) return;
      box = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
    } else {
      const a = drag.fixed;
      box = [Math.min(a[0], at[0]), Math.min(a[1], at[1]), Math.max(a[0], at[0]), Math.max(a[1], at[1])];
      if (Math.min(box[2] - box[0], box[3] - box[1]) < 3 * unit()) return; // a click is no box
      if (drag.fresh) app.add(box);
      drag.fresh = false;
    }
    app.boxes[app.chosen] = { at: box, captions: {} };
    app.redraw();
  });
  const end = () => {
    if (drag) app.remember();
    drag = null;
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  svg.addEventListener("focusin", (event) => {
    const box = event.target.closest(".box");
    if (box && Number(box.dataset.box) !== app.chosen && !drag) app.choose(Number(box.dataset.box));
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (app.chosen < 0) return;
    if (event.key === "Delete" || event.key === "Backspace") app.remove(app.chosen);
    else if (event.key === "Enter") app.ask();
    else if (step) {
      const [w, h] = size(), by = Math.max(1, Math.round(Math.max(w, h) / 100)), box = app.boxes[app.chosen].at;
      const [dx, dy] = step.map((v) => v * by), x = clamp(dx, -box[0], w - box[2]), y = clamp(dy, -box[1], h - box[3]);
      const at = event.shiftKey
        ? [box[0], box[1], clamp(box[2] + dx, box[0] + 2, w), clamp(box[3] + dy, box[1] + 2, h)]
        : [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
      app.boxes[app.chosen] = { at, captions: {} };
      app.changed();
    } else return;
    event.preventDefault();
  });
  window.addEventListener("resize", () => { if (!frame.hidden) { fit(); draw(); } });

  return {
    numbers: 4,
    digits: () => 1,
    fits: ([x1, y1, x2, y2]) => x1 >= 0 && y1 >= 0 && x1 < x2 && y1 < y2 && x2 <= size()[0] && y2 <= size()[1],
    show(url) {
      return new Promise((resolve, reject) => {
        photo.onload = () => {
          const [w, h] = size();
          svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
          frame.hidden = false;
          fit();
          resolve(`${w} x ${h} pixels`);
        };
        photo.onerror = () => reject(new Error("This photo cannot be read."));
        photo.src = url;
      });
    },
    add() {
      const [w, h] = size();
      app.add([w / 3, h / 3, (2 * w) / 3, (2 * h) / 3]);
      group(app.chosen).focus();
    },
    draw,
    async picture() {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = size();
      canvas.getContext("2d").drawImage(photo, 0, 0); // upright, without what else the file says of the photographer
      return canvas.toDataURL("image/png");
    },
  };
}
