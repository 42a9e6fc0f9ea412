// Behaviour of every page: values under the mouse on curves, clouds that turn, cards that can be sorted. Pages read well without it.
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
  const START = { turn: -0.6, tilt: 0.38 };

  const cloud = (canvas) => {
    const raw = new Int16Array(bytes(canvas.dataset.points).buffer), n = raw.length / 3;
    const colours = canvas.dataset.colours ? bytes(canvas.dataset.colours) : null;
    const box = canvas.dataset.box ? JSON.parse(canvas.dataset.box) : null;
    const zUp = canvas.dataset.up === "z";
    let { turn, tilt } = START, drag = null;
    const draw = () => {
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
      const shown = [];
      for (let i = 0; i < n; i++) shown.push([...view(raw[3 * i] / 32767, raw[3 * i + 1] / 32767, raw[3 * i + 2] / 32767), i]);
      shown.sort((a, b) => a[2] - b[2]);
      for (const [x, y, depth, i] of shown) {
        const near = Math.max(0, Math.min(1, (depth + 1) / 2));
        pen.globalAlpha = 0.25 + 0.75 * near;
        pen.fillStyle = colours ? `rgb(${colours[3 * i]} ${colours[3 * i + 1]} ${colours[3 * i + 2]})` : style.getPropertyValue("--c0");
        pen.beginPath(); pen.arc(x, y, 1 + 1.1 * near, 0, 7); pen.fill();
      }
      if (box) {
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
    canvas.addEventListener("dblclick", () => { ({ turn, tilt } = START); draw(); });
    window.addEventListener("resize", draw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); cloud(entry.target); }
  }, { rootMargin: "400px" });
  document.querySelectorAll("canvas.cloud").forEach((canvas) => seen.observe(canvas));

  for (const choice of document.querySelectorAll("select.sort")) {
    const cards = choice.closest(".group").querySelector(".cards"), order = [...cards.children];
    choice.addEventListener("change", () => {
      const sign = { best: -1, worst: 1 }[choice.value];
      const value = (card) => parseFloat(card.dataset.score);
      cards.append(...(sign ? [...order].sort((a, b) => sign * (value(a) - value(b))) : order));
    });
  }
})();
