// The stage for clouds: it turns and zooms, a click picks an object, handles on the six sides of the chosen box shape it.
import { bounds, objects } from "./objects.js";

const START = { y: { turn: -0.6, tilt: 0.38 }, z: { turn: -0.35, tilt: 0.65 } }; // by the axis that points up
const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];
const MOST_DRAWN = 30000; // points of a picture; all are picked from and captioned
const REACH = 12; // pixels between a click and the point that it picks
const AXES = "xyz";

export function cloudStage(app, { canvas, svg, frame, upright }) {
  let points = new Float32Array(), colours = null, all = [0, 0, 0, 1, 1, 1], radius = 1, up = 2, found = { of: [], boxes: [] };
  let turn = 0, tilt = 0, zoom = 1, drag = null;
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

  function view() { // what turns a point into [x, y, depth] in pixels of the page; right-handed, the up axis upwards
    const w = frame.clientWidth, h = frame.clientHeight, scale = (Math.min(w, h) * 0.48 * zoom) / radius;
    const ct = Math.cos(turn), st = Math.sin(turn), cx = Math.cos(tilt), sx = Math.sin(tilt);
    return (px, py, pz) => {
      let x = px - (all[0] + all[3]) / 2, y = py - (all[1] + all[4]) / 2, z = pz - (all[2] + all[5]) / 2;
      if (up === 2) [y, z] = [z, -y];
      const u = ct * x + st * z, d = ct * z - st * x;
      return [w / 2 + u * scale, h / 2 - (cx * y - sx * d) * scale, (sx * y + cx * d) * scale];
    };
  }

  function draw() {
    if (!points.length || !frame.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, w = frame.clientWidth, h = frame.clientHeight;
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    const pen = canvas.getContext("2d"), style = getComputedStyle(frame), to = view(), n = points.length / 3;
    pen.scale(ratio, ratio);
    const chosen = app.boxes[app.chosen]?.at, step = Math.ceil(n / MOST_DRAWN), shown = [];
    for (let i = 0; i < n; i += step) shown.push([...to(points[3 * i], points[3 * i + 1], points[3 * i + 2]), i]);
    shown.sort((a, b) => a[2] - b[2]);
    const plain = style.getPropertyValue("--ink"), marked = style.getPropertyValue("--box"), deep = Math.min(w, h) * 0.48 * zoom;
    const inside = (i) => chosen && [0, 1, 2].every((k) => points[3 * i + k] >= chosen[k] && points[3 * i + k] <= chosen[k + 3]);
    for (const [x, y, depth, i] of shown) {
      const near = clamp((depth / deep + 1) / 2, 0, 1), side = 1.6 + 1.6 * near;
      pen.globalAlpha = 0.3 + 0.7 * near;
      pen.fillStyle = colours ? `rgb(${colours[3 * i]} ${colours[3 * i + 1]} ${colours[3 * i + 2]})` : inside(i) ? marked : plain;
      pen.fillRect(x - side / 2, y - side / 2, side, side);
    }
    svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    const focused = document.activeElement?.dataset?.focus;
    svg.replaceChildren(...app.boxes.map((box, i) => group(box.at, i, to)));
    if (focused) svg.querySelector(`[data-focus="${focused}"]`)?.focus();
  }

  function group(at, i, to) {
    const corner = (k) => to(at[k & 1 ? 3 : 0], at[k & 2 ? 4 : 1], at[k & 4 ? 5 : 2]);
    const path = EDGES.map(([a, b]) => `M${corner(a).slice(0, 2)}L${corner(b).slice(0, 2)}`).join("");
    const made = app.element("g", {
      class: i === app.chosen ? "box chosen" : "box", tabindex: 0, role: "button", "data-box": i, "data-focus": `b${i}`, "aria-pressed": i === app.chosen,
      "aria-label": `Box ${i + 1}: ${app.rounded(at).join(", ")}`,
    });
    for (const kind of ["under", "over"]) made.append(app.element("path", { class: kind, d: path }));
    const [x, y] = [0, 1, 2, 3, 4, 5, 6, 7].map(corner).reduce((a, b) => (b[1] < a[1] ? b : a));
    const number = app.element("text", { x: x + 6, y: y - 4, "font-size": 16 }, i + 1);
    number.style.fontSize = "16px";
    number.style.strokeWidth = "3px";
    made.append(number);
    if (i === app.chosen) for (let side = 0; side < 6; side++) {
      const [from, axis] = [middle(at, side), along(side, to)];
      if (Math.hypot(...axis) * radius < 0.25 * Math.hypot(...along(0, to), ...along(1, to), ...along(2, to)) * radius) continue; // it points at the reader
      const [cx, cy] = to(...from);
      made.append(app.element("circle", {
        class: "handle", cx, cy, r: 7, tabindex: 0, role: "slider", "data-side": side, "data-focus": `s${side}`,
        "aria-label": `Box ${i + 1}, ${side < 3 ? "lowest" : "highest"} ${AXES[side % 3]}`,
        "aria-valuenow": app.rounded(at)[side], "aria-valuemin": app.rounded(all)[side % 3], "aria-valuemax": app.rounded(all)[(side % 3) + 3],
      }));
    }
    return made;
  }
  const middle = (at, side) => [0, 1, 2].map((k) => (k === side % 3 ? at[side] : (at[k] + at[k + 3]) / 2));
  function along(side, to) { // pixels of one unit along the side's axis
    const centre = [0, 1, 2].map((k) => (all[k] + all[k + 3]) / 2), moved = centre.map((v, k) => (k === side % 3 ? v + radius : v));
    const [a, b] = [to(...centre), to(...moved)];
    return [(b[0] - a[0]) / radius, (b[1] - a[1]) / radius];
  }
  function shape(side, by) {
    const at = [...app.boxes[app.chosen].at], least = 0.01 * radius, other = (side + 3) % 6;
    at[side] = side < 3
      ? clamp(at[side] + by, all[side] - least, at[other] - least)
      : clamp(at[side] + by, at[other] + least, all[side] + least);
    app.boxes[app.chosen].at = at;
    app.boxes[app.chosen].captions = {};
  }

  // -- picking --
  function pick(x, y) {
    const to = view(), n = points.length / 3;
    let best = -1, front = -Infinity;
    for (let i = 0; i < n; i++) {
      const [u, v, depth] = to(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
      if (depth > front && (u - x) ** 2 + (v - y) ** 2 < REACH ** 2) [best, front] = [i, depth];
    }
    const object = best < 0 ? -1 : found.of[best];
    if (object < 0) return app.say("No object there. Click on one, or use Add box.", true);
    put(found.boxes[object]);
  }
  function put(at) {
    const there = app.boxes.findIndex((box) => box.at.every((v, k) => v === at[k]));
    if (there >= 0) app.choose(there);
    else app.add([...at]);
    app.say(`Box ${app.chosen + 1} around an object.`);
  }
  function add() {
    const free = found.boxes.find((at) => !app.boxes.some((box) => overlap(box.at, at)));
    put(free || [0, 1, 2, 3, 4, 5].map((k) => (2 * all[k] + all[(k + 3) % 6]) / 3));
    svg.querySelector(`[data-box="${app.chosen}"]`).focus();
  }
  const overlap = (a, b) => [0, 1, 2].every((k) => a[k] < b[k + 3] && b[k] < a[k + 3]);

  // -- mouse, touch, keys --
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const side = event.target.dataset?.side, box = event.target.closest(".box");
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
    drag = { x: event.clientX, y: event.clientY, moved: 0, side: side === undefined ? null : Number(side), box: box ? Number(box.dataset.box) : -1 };
    if (drag.side === null) (box || svg).focus();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    drag.moved += Math.hypot(dx, dy);
    [drag.x, drag.y] = [event.clientX, event.clientY];
    if (drag.side !== null) {
      const [ax, ay] = along(drag.side, view());
      shape(drag.side, (dx * ax + dy * ay) / (ax * ax + ay * ay));
      app.redraw();
    } else if (drag.moved > 4) {
      turn += dx * 0.01;
      tilt = clamp(tilt + dy * 0.01, -Math.PI / 2, Math.PI / 2);
      draw();
    }
  });
  svg.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { side, moved, box } = drag, area = frame.getBoundingClientRect();
    drag = null;
    if (side !== null) app.changed();
    else if (moved <= 4 && box >= 0) app.choose(box);
    else if (moved <= 4) pick(event.clientX - area.x - frame.clientLeft, event.clientY - area.y - frame.clientTop);
  });
  svg.addEventListener("pointercancel", () => { drag = null; });
  svg.addEventListener("focusin", (event) => {
    const box = event.target.closest(".box");
    if (box && Number(box.dataset.box) !== app.chosen && !drag) app.choose(Number(box.dataset.box));
  });
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !svg.contains(document.activeElement)) return; // the page scrolls
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.002));
  }, { passive: false });
  const zoomBy = (factor) => { zoom = clamp(zoom * factor, 0.5, 20); draw(); };
  svg.addEventListener("keydown", (event) => {
    const side = event.target.dataset?.side, box = event.target.closest(".box");
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (side !== undefined && step) {
      shape(Number(side), (step[0] + step[1]) * (event.shiftKey ? 0.001 : 0.01) * radius);
      app.changed();
    } else if (step) {
      turn += step[0] * 0.1;
      tilt = clamp(tilt + step[1] * 0.1, -Math.PI / 2, Math.PI / 2);
      draw();
    } else if (event.key === "+" || event.key === "-") zoomBy(event.key === "+" ? 1.2 : 1 / 1.2);
    else if (event.key === "Home") again();
    else if (box && (event.key === "Delete" || event.key === "Backspace")) app.remove(Number(box.dataset.box));
    else if (box && event.key === "Enter") app.ask();
    else return;
    event.preventDefault();
  });
  function again() {
    ({ turn, tilt } = START[AXES[up]]);
    zoom = 1;
    draw();
  }
  upright.addEventListener("click", () => setUp(up === 2 ? "y" : "z"));
  function setUp(axis) {
    up = AXES.indexOf(axis);
    upright.textContent = `Up: ${axis}`;
    found = objects(points, up);
    again();
    app.remember();
  }
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  return {
    numbers: 6,
    digits: () => Math.max(0, 4 - Math.ceil(Math.log10(radius))), // of a box: less than a thousandth of the radius
    fits: (at) => [0, 1, 2].every((k) => at[k] < at[k + 3] && at[k] <= all[k + 3] && at[k + 3] >= all[k]),
    show(rows, width, axis) { // rows: numbers of the points, `width` each: x, y, z and perhaps colours from 0 to 1
      const n = rows.length / width;
      points = new Float32Array(3 * n);
      colours = width === 6 ? new Uint8ClampedArray(3 * n) : null;
      for (let i = 0; i < n; i++) for (let k = 0; k < 3; k++) {
        points[3 * i + k] = rows[width * i + k];
        if (colours) colours[3 * i + k] = 255 * rows[width * i + 3 + k];
      }
      all = bounds(points);
      radius = Math.hypot(all[3] - all[0], all[4] - all[1], all[5] - all[2]) / 2 || 1;
      setUp(axis);
      return `${n.toLocaleString("en")} points, ${found.boxes.length} objects found`;
    },
    up: () => AXES[up],
    add,
    draw,
    async picture() { draw(); return canvas.toDataURL("image/png"); },
  };
}
