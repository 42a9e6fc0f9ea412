// Behaviour of every page: values under the mouse on curves, clouds that turn, a switch of cards. Pages read well without it.
"use strict";
(() => {
  const number = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4)));

  for (const chart of document.querySelectorAll(".chart")) {
    const source = chart.querySelector("script");
    if (!source) continue;
    const { plot, x, series } = JSON.parse(source.textContent);
    const svg = chart.querySelector("svg"), hair = svg.querySelector(".hair"), tip = chart.querySelector(".tip");
    const [left, , right] = plot, [low, high] = x;
    const nearest = (points, at) => {
      let a = 0, b = points.length - 1;
      while (b - a > 1) { const m = (a + b) >> 1; if (points[m][0] < at) a = m; else b = m; }
      return Math.abs(points[a][0] - at) <= Math.abs(points[b][0] - at) ? points[a] : points[b];
    };
    const hide = () => { hair.style.visibility = tip.style.visibility = "hidden"; };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const area = svg.getBoundingClientRect(), unit = area.width / svg.viewBox.baseVal.width;
      const place = (event.clientX - area.left) / unit;
      if (place < left || place > right || !series.length) return hide();
      const at = low + ((place - left) / (right - left)) * (high - low);
      const found = series.map((s) => ({ ...s, point: nearest(s.points, at) }));
      const step = found.reduce((a, b) => (Math.abs(b.point[0] - at) < Math.abs(a.point[0] - at) ? b : a)).point[0];
      const px = left + ((step - low) / (high - low || 1)) * (right - left);
      hair.setAttribute("x1", px); hair.setAttribute("x2", px); hair.style.visibility = "visible";
      tip.replaceChildren();
      const head = document.createElement("div");
      head.textContent = `step ${step.toLocaleString("en")}`;
      tip.append(head);
      for (const s of found) {
        const line = document.createElement("div"), dot = document.createElement("i"), value = document.createElement("b");
        line.className = s.colour; value.textContent = number(s.point[1]);
        line.append(dot, s.name + " ", value);
        if (s.point[0] !== step) line.append(` at ${s.point[0].toLocaleString("en")}`);
        tip.append(line);
      }
      const frame = chart.getBoundingClientRect(), x0 = area.left - frame.left + px * unit;
      tip.style.left = x0 > frame.width / 2 ? "auto" : `${x0 + 12}px`;
      tip.style.right = x0 > frame.width / 2 ? `${frame.width - x0 + 12}px` : "auto";
      tip.style.top = "34px"; tip.style.visibility = "visible";
    });
  }

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];
  const START = { y: { turn: -0.6, tilt: 0.38 }, z: { turn: -0.35, tilt: 0.65 } };  // by the axis that points up

  const cloud = (canvas) => {
    const raw = new Int16Array(bytes(canvas.dataset.points).buffer), n = raw.length / 3;
    const colours = canvas.dataset.colours ? bytes(canvas.dataset.colours) : null;
    const box = canvas.dataset.box ? JSON.parse(canvas.dataset.box) : null;
    const zUp = canvas.dataset.up === "z";
    const start = START[zUp ? "z" : "y"];
    let { turn, tilt } = start, drag = null;
    const inside = box && !colours ? new Uint8Array(n) : null;  // without colours of their own, the points in the box stand out
    for (let i = 0; inside && i < n; i++)
      inside[i] = [0, 1, 2].every((k) => raw[3 * i + k] / 32767 >= box[k] - 1e-3 && raw[3 * i + k] / 32767 <= box[k + 3] + 1e-3);
    const draw = () => {
      if (!canvas.clientWidth) return;  // not on show
      const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
      canvas.width = w * ratio; canvas.height = h * ratio;
      const pen = canvas.getContext("2d"), style = getComputedStyle(canvas), scale = Math.min(w, h) * 0.48;
      pen.scale(ratio, ratio);
      const ct = Math.cos(turn), st = Math.sin(turn), cx = Math.cos(tilt), sx = Math.sin(tilt);
      // Right-handed, the cloud's own up axis pointing up; y of the canvas points down.
      const view = (x, y, z) => {
        if (zUp) [x, y, z] = [x, z, -y];
        const u = ct * x + st * z, d = ct * z - st * x;
        return [w / 2 + u * scale, h / 2 - (cx * y - sx * d) * scale, sx * y + cx * d];
      };
      const plain = style.getPropertyValue("--c0"), soft = style.getPropertyValue("--soft"), bare = canvas.closest(".bare");
      const shown = [];
      for (let i = 0; i < n; i++) shown.push([...view(raw[3 * i] / 32767, raw[3 * i + 1] / 32767, raw[3 * i + 2] / 32767), i]);
      shown.sort((a, b) => a[2] - b[2]);
      for (const [x, y, depth, i] of shown) {
        const near = Math.max(0, Math.min(1, (depth + 1) / 2));
        pen.globalAlpha = 0.25 + 0.75 * near;
        pen.fillStyle = colours ? `rgb(${colours[3 * i]} ${colours[3 * i + 1]} ${colours[3 * i + 2]})` : inside && !inside[i] ? soft : plain;
        pen.beginPath(); pen.arc(x, y, 1 + 1.1 * near, 0, 7); pen.fill();
      }
      if (box && !bare) {
        pen.globalAlpha = 1; pen.strokeStyle = style.getPropertyValue("--box"); pen.lineWidth = 1.6;
        const corner = (k) => view(box[k & 1 ? 3 : 0], box[k & 2 ? 4 : 1], box[k & 4 ? 5 : 2]);
        pen.beginPath();
        for (const [a, b] of EDGES) { pen.moveTo(...corner(a).slice(0, 2)); pen.lineTo(...corner(b).slice(0, 2)); }
        pen.stroke();
      }
    };
    canvas.addEventListener("pointerdown", (e) => { drag = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointermove", (e) => {
      if (!drag) return;
      turn += (e.clientX - drag[0]) * 0.01;
      tilt = Math.max(-1.57, Math.min(1.57, tilt + (e.clientY - drag[1]) * 0.01));
      drag = [e.clientX, e.clientY]; draw();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { drag = null; });
    canvas.tabIndex = 0; canvas.title = "drag, or arrow keys, to turn; double click to turn back";
    canvas.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[e.key];
      if (!by) return;
      turn += by[0]; tilt = Math.max(-1.57, Math.min(1.57, tilt + by[1])); e.preventDefault(); draw();
    });
    canvas.addEventListener("dblclick", () => { ({ turn, tilt } = start); draw(); });
    window.addEventListener("resize", draw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
    canvas.classList.add("drawn");
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); cloud(entry.target); }
  }, { rootMargin: "400px" });
  document.querySelectorAll("canvas.cloud").forEach((canvas) => seen.observe(canvas));

  for (const group of document.querySelectorAll(".group")) {
    const cards = group.querySelector(".cards"), buttons = [...group.querySelectorAll(".switch button")];
    for (const button of buttons) button.addEventListener("click", () => {
      const view = button.dataset.view;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      group.querySelector(".which").textContent = button.dataset.which;
      for (const card of cards.children) card.hidden = !(view in card.dataset);
      cards.append(...[...cards.children].filter((card) => !card.hidden).sort((a, b) => a.dataset[view] - b.dataset[view]));
    });
    const boxes = group.querySelector(".boxes input");
    if (boxes) boxes.addEventListener("change", () => {
      group.classList.toggle("bare", !boxes.checked);
      window.dispatchEvent(new Event("resize"));
    });
  }
})();
