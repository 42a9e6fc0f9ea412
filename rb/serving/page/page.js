// The page of `rb demo`: a photo or a cloud, boxes in it, their captions by every model that is ticked. Talks to its own server only.
import { cloudStage } from "./cloud.js";
import { photoStage } from "./photo.js";

const $ = (id) => document.getElementById(id), SVG = "http://www.w3.org/2000/svg";
const PHOTO = /\.(jpe?g|png|webp)$/i, CLOUD = /\.(ply|pcd|npy|npz|pt|xyz)$/i;
let file = null, example = "", stage = null, models = [], asked = 0, token = sessionStorage.getItem("token") || "";

// What the stages share with this file.
const app = {
  boxes: [], chosen: -1,
  element(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  },
  say(text, wrong = false) { $("status").textContent = text; $("status").classList.toggle("wrong", wrong); },
  rounded: (at) => at.map((v) => +v.toFixed(stage.digits())), // as the address holds a box and the server gets it
  redraw() { stage?.draw(); list(); },
  changed() { app.redraw(); remember(); },
  remember: () => remember(),
  choose(i) { app.chosen = i; app.redraw(); },
  add(at) { app.boxes.push({ at, captions: {} }); app.chosen = app.boxes.length - 1; app.changed(); },
  remove(i) {
    app.boxes.splice(i, 1);
    app.chosen = Math.min(app.chosen, app.boxes.length - 1);
    app.changed();
    (document.querySelector(`svg [data-box="${app.chosen}"]`) || $("add")).focus();
  },
  ask: () => ask(),
};
const stages = {
  photo: photoStage(app, { photo: $("photo"), svg: $("boxes"), frame: $("frame") }),
  cloud: cloudStage(app, { canvas: $("points"), svg: $("boxes3"), frame: $("cloud"), upright: $("upright") }),
};

// -- the address holds the example, boxes and models, not one's own file --
function remember() {
  const words = app.boxes.map((box) => app.rounded(box.at).join(",")).join(";");
  const parts = [`boxes=${words}`, `models=${ticked().map(encodeURIComponent).join(",")}`];
  if (example) parts.push(`example=${encodeURIComponent(example)}`);
  if (stage === stages.cloud) parts.push(`up=${stage.up()}`);
  history.replaceState(null, "", `#${parts.join("&")}`);
}
function remembered() {
  const found = Object.fromEntries(location.hash.slice(1).split("&").map((part) => part.split("=")));
  return {
    boxes: (found.boxes || "").split(";").map((row) => row.split(",").map(Number)).filter((row) => row.every(Number.isFinite)),
    models: found.models ? found.models.split(",").map(decodeURIComponent) : null,
    example: decodeURIComponent(found.example || ""),
    up: found.up === "y" ? "y" : found.up === "z" ? "z" : "",
  };
}

// -- the server --
async function get(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {}, answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("login").hidden = false;
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}
function form(fields) {
  const made = new FormData();
  for (const [name, value] of Object.entries(fields)) made.append(name, value);
  return { method: "POST", body: made };
}

// -- a photo or a cloud --
async function open(given, named = "", up = "z") {
  if (!given) return;
  const kind = PHOTO.test(given.name) || /^image\/(jpeg|png|webp)$/.test(given.type) ? "photo" : CLOUD.test(given.name) ? "cloud" : null;
  if (!kind) return app.say("This is neither a photo (JPEG, PNG, WebP) nor a cloud (ply, pcd, npy, npz, pt, xyz).", true);
  const kept = file ? { boxes: [], up: "" } : remembered();
  app.say("Opening ...");
  try {
    let about;
    app.boxes = [];
    app.chosen = -1;
    if (kind === "photo") {
      $("cloud").hidden = true;
      URL.revokeObjectURL($("photo").src);
      about = await stages.photo.show(URL.createObjectURL(given));
    } else {
      const answer = await get("v1/points", form({ points: given })), rows = new Float32Array(await answer.arrayBuffer());
      $("frame").hidden = true;
      $("cloud").hidden = false;
      stage = stages.cloud;
      about = stages.cloud.show(rows, Number(answer.headers.get("X-Columns")), kept.up || up);
    }
    [file, example, stage] = [given, named, stages[kind]];
    $("empty").hidden = true;
    $("upright").hidden = kind !== "cloud";
    $("hint").textContent = $("hint").dataset[kind];
    app.boxes = kept.boxes.filter((at) => at.length === stage.numbers && stage.fits(at)).map((at) => ({ at, captions: {} }));
    app.chosen = app.boxes.length - 1;
    offer();
    app.say(`${given.name || "Photo"}: ${about}.`);
    app.changed();
  } catch (error) {
    app.say(error.message, true);
  }
}
async function openExample({ example: name, up }) {
  const found = await fetch(`page/examples/${name}`);
  await open(new File([await found.blob()], name, { type: found.headers.get("Content-Type").split(";")[0] }), name, up);
}
$("file").addEventListener("change", (event) => open(event.target.files[0]));
$("examples").addEventListener("click", (event) => {
  if (event.target.dataset.example) openExample(event.target.dataset);
});
document.addEventListener("paste", (event) => open([...event.clipboardData.files][0]));
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") open(event.dataTransfer.files[0]);
});
$("add").addEventListener("click", () => stage.add());

// -- models and captions --
const modality = () => (stage === stages.cloud ? "point_cloud_region" : "image_region");
const offered = () => models.filter((row) => row.modalities.includes(modality()) || (row.kind !== "checkpoint" && stage !== stages.cloud));
const ticked = () => offered().filter((row) => row.ticked).map((row) => row.id);
function offer() {
  $("models").replaceChildren($("models").firstElementChild, ...offered().map((row) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "checkbox", value: row.id, checked: row.ticked });
    input.addEventListener("change", () => { row.ticked = input.checked; list(); remember(); });
    label.append(input, ` ${row.id}`);
    return label;
  }));
}
function cell(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
function list() {
  const names = ticked();
  $("head").replaceChildren(...["Box", ...names, ""].map((name) => Object.assign(cell("th", name), { scope: "col" })));
  $("rows").replaceChildren(...app.boxes.map((box, i) => {
    const row = document.createElement("tr"), last = document.createElement("td"), button = cell("button", "\u00d7");
    row.className = i === app.chosen ? "chosen" : "";
    row.append(Object.assign(cell("th", i + 1), { scope: "row" }), ...names.map((name) => {
      const answer = box.captions[name], made = cell("td", answer ? answer.caption : "");
      if (answer) made.append(Object.assign(cell("small", `log p ${answer.log_probability.toFixed(2)}`), { title: "log-probability, in nats" }));
      return made;
    }));
    button.type = "button";
    button.title = `Delete box ${i + 1}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => app.remove(i));
    last.append(button);
    row.append(last);
    return row;
  }));
  $("ask").disabled = !app.boxes.length || !names.length;
  $("save").disabled = $("add").disabled = !file;
}
async function ask() {
  const mine = ++asked, now = app.boxes.map((box) => ({ box, at: box.at })), boxes = JSON.stringify(now.map(({ at }) => app.rounded(at)));
  const [path, field] = stage === stages.cloud ? ["v1/clouds", "points"] : ["v1/regions", "image"];
  if (!now.length || !ticked().length) return;
  app.say("Reading ...");
  try {
    await Promise.all(ticked().map(async (model) => {
      const body = await (await get(path, form({ [field]: file, model, boxes }))).json();
      body.captions.forEach((row, i) => { if (now[i].box.at === now[i].at) now[i].box.captions[model] = row; });
    }));
    if (mine === asked) app.say(`${now.length} ${now.length === 1 ? "box" : "boxes"} captioned.`);
  } catch (error) {
    app.say(error.message, true);
  }
  app.redraw();
}
$("ask").addEventListener("click", ask);

// -- one file with picture, boxes and captions --
const STYLE = "body{font:15px system-ui;margin:20px}div{position:relative;display:inline-block}img{width:640px;max-width:100%;display:block}" +
  "svg{position:absolute;inset:0;width:100%;height:100%}rect,path{fill:none;stroke:#ff2d55;stroke-width:2px;vector-effect:non-scaling-stroke}" +
  "text{fill:#fff;stroke:#000;paint-order:stroke;font-weight:600}th,td{text-align:left;padding:6px 12px 6px 0;vertical-align:top}" +
  "small{display:block}circle,button{display:none}";
$("save").addEventListener("click", async () => {
  const figure = document.createElement("div"), image = document.createElement("img"), link = document.createElement("a");
  const drawn = (stage === stages.cloud ? $("boxes3") : $("boxes")).cloneNode(true);
  for (const one of [drawn, ...drawn.querySelectorAll("[tabindex]")]) one.removeAttribute("tabindex");
  image.src = await stage.picture();
  image.alt = "What was captioned";
  figure.append(image, drawn);
  const rows = app.boxes.map((box) => ({ box: app.rounded(box.at), captions: box.captions }));
  const data = JSON.stringify({ file: file.name, boxes: rows }).replaceAll("<", "\\u003c");
  const page = `<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Boxes and captions</title><style>${STYLE}</style></head><body>` +
    `${figure.outerHTML}${document.querySelector("table").outerHTML}<script type="application/json">${data}</script></body></html>\n`;
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.download = "boxes.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

// -- the beginning --
async function begin() {
  const { models: wanted, example: named } = remembered();
  try {
    const { data } = await (await get("v1/models")).json();
    models = data.map((row, i) => ({ ...row, ticked: wanted ? wanted.includes(row.id) : i === 0 || row.kind !== "checkpoint" }));
    $("login").hidden = true;
    sessionStorage.setItem("token", token);
    app.say("");
  } catch (error) {
    return app.say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  }
  offer();
  list();
  const button = named && document.querySelector(`[data-example="${CSS.escape(named)}"]`);
  if (button) await openExample(button.dataset);
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  begin();
});
begin();
