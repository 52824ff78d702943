// Connects the parts of the page: there is one current picture, which is sent again when it or an option changes.

import { classify, embed, info as askInfo, use } from "./api.js";
import * as gallery from "./gallery.js";
import * as picture from "./picture.js";
import * as saliency from "./saliency.js";
import { $, bars, element, models, noProblem, percent, problem, status, timing, vector as showVector } from "./show.js";
import { snippets } from "./snippets.js";

const now = { info: null, blob: null, name: "photo.jpg", bitmap: null, best: null, vector: null, turn: 0, asked: 0, tab: 0, model: "" };
const other = { file: null, bitmap: null, vector: null, fingerprint: "" };

const share = () => (now.info?.preprocess ? now.info.preprocess.size / now.info.preprocess.resize : 1);
const topK = () => Number($("top_k").value);

async function take(blob, name = "photo.jpg") {
  Object.assign(now, { blob, name, bitmap: await picture.read(blob), best: null, vector: null });
  $("drop").classList.add("full");
  $("heat").hidden = $("look-off").hidden = true;
  $("look-note").textContent = "";
  for (const [id, part] of [["preview", share()], ["left", 1]]) {
    if (now.bitmap) picture.show($(id), now.bitmap, part);
    else picture.clear($(id));
    $(id).setAttribute("aria-label", now.bitmap ? `${name}, as the model sees it` : `${name}: no preview in this browser`);
  }
  await ask();
}

async function ask() {
  if (!now.blob) return;
  const turn = ++now.turn;
  noProblem();
  try {
    const started = performance.now();
    const asked = now.info?.model?.classes ? await classify(now.blob, topK()) : null;
    const seconds = (performance.now() - started) / 1000;
    const { vector, stages, fingerprint } = await embed(now.blob);
    if (turn !== now.turn) return; // a newer picture was chosen
    Object.assign(now, { vector, fingerprint, best: asked?.predictions[0] ?? null });
    if (asked) bars(asked.predictions);
    timing(asked?.stages ?? stages, seconds);
    showVector(vector);
    $("raw").textContent = JSON.stringify(asked?.body ?? { embedding: Array.from(vector) }, null, 2);
  } catch (error) {
    if (turn !== now.turn) return;
    $("bars").replaceChildren();
    problem(error, ask);
  }
  for (const id of ["look", "keep"]) $(id).disabled = !now.vector || !now.bitmap;
  $("look").disabled ||= !now.best;
  compare();
  await showGallery();
}

async function look() {
  $("look").disabled = true;
  $("look-note").textContent = "Asking about every part…";
  try {
    const found = await saliency.look(now.bitmap, now.info, now.best.index);
    saliency.draw($("heat"), found);
    $("heat").hidden = $("look-off").hidden = false;
    const lowest = found.whole - Math.max(...found.drops);
    const count = found.drops.length + 1;
    $("look-note").textContent =
      `Covering the most telling part lowers “${now.best.label}” from ${percent(found.whole)} to ${percent(lowest)}. ` +
      `${count} pictures in one request, ${found.seconds.toFixed(1)} s, in batches of ${found.batches.join(" + ")}.`;
  } catch (error) {
    $("look-note").textContent = "";
    problem(error, error.retryAfter ? look : null);
  }
  $("look").disabled = false;
}

function compare() {
  const ready = now.vector && other.vector && now.fingerprint === other.fingerprint;
  $("cosine").textContent = ready ? gallery.cosine(now.vector, other.vector).toFixed(3) : "–";
}

async function takeOther(file) {
  Object.assign(other, { file, vector: null });
  try {
    other.bitmap = await picture.read(file);
    if (other.bitmap) picture.show($("right"), other.bitmap);
    $("other-slot").classList.add("full");
    $("right").setAttribute("aria-label", `Second picture: ${file.name}`);
    const { vector, fingerprint } = await embed(file);
    Object.assign(other, { vector, fingerprint });
    compare();
  } catch (error) {
    problem(error);
  }
}

async function keep(blob, name) {
  const bitmap = await picture.read(blob);
  if (!bitmap) return problem(new Error(`${name}: this browser cannot show it`));
  const { vector, fingerprint } = await embed(blob);
  await gallery.add({ name, vector, fingerprint, thumbnail: await picture.thumbnail(bitmap), blob });
  return showGallery();
}

async function keepMany(files) {
  try {
    for (const file of files) await keep(file, file.name);
  } catch (error) {
    problem(error);
  }
}

async function showGallery() {
  const fingerprint = now.info?.model?.fingerprint;
  const pictures = gallery.ordered(await gallery.all().catch(() => []), now.vector, fingerprint);
  $("forget").hidden = !pictures.length;
  $("gallery").replaceChildren(...(await Promise.all(pictures.map(galleryItem))));
}

async function galleryItem({ name, thumbnail, blob, cosine }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 144, height: 144 });
  const bitmap = await picture.read(thumbnail);
  if (bitmap) picture.show(canvas, bitmap);
  canvas.setAttribute("aria-hidden", "true");
  const button = element("button", "", { type: "button", class: "thumb", title: name });
  button.append(canvas);
  if (cosine !== null) button.append(element("b", cosine.toFixed(3)));
  button.append(element("span", name));
  button.addEventListener("click", () => take(blob, name));
  const item = element("li");
  item.append(button);
  return item;
}

async function showSamples() {
  const samples = await fetch("samples").then((answer) => (answer.ok ? answer.json() : [])).catch(() => []);
  $("samples").replaceChildren(...samples.map(({ file, label }) => {
    const button = element("button", "", { type: "button", class: "thumb" });
    button.append(element("img", "", { src: `samples/${file}`, alt: "", width: 72, height: 72, loading: "lazy" }), element("span", label));
    button.addEventListener("click", async () => take(await (await fetch(`samples/${file}`)).blob(), file));
    return button;
  }));
}

function showSnippet() {
  const op = document.querySelector("input[name=op]:checked").value;
  const base = location.href.replace(/[?#].*$/, "").replace(/\/$/, "");
  const found = snippets({ base, op, topK: topK(), model: now.info?.model?.name ?? "demo", named: now.model });
  now.tab = Math.min(now.tab, found.length - 1);
  $("tabs").replaceChildren(...found.map(({ name }, i) => tab(name, i)));
  const { code, needs } = found[now.tab];
  $("snippet").textContent = code;
  $("needs").textContent = needs;
  $("panel").setAttribute("aria-labelledby", `tab-${now.tab}`);
}

function tab(name, i) {
  const chosen = i === now.tab;
  const button = element("button", name, { type: "button", role: "tab", id: `tab-${i}`, "aria-selected": chosen, "aria-controls": "panel", tabindex: chosen ? 0 : -1 });
  button.addEventListener("click", () => choose(i));
  return button;
}

function choose(i) {
  now.tab = i;
  showSnippet();
  $(`tab-${i}`).focus();
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const count = $("tabs").children.length;
  if (step) choose((now.tab + step + count) % count);
}

async function copy() {
  await navigator.clipboard.writeText($("snippet").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}

async function paste() {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith("image/"));
      if (type) return take(await item.getType(type), "pasted");
    }
    problem(new Error("There is no picture in the clipboard."));
  } catch {
    problem(new Error("The browser does not let the page read the clipboard; press Ctrl+V instead."));
  }
}

function droppable(target, use) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    target.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      target.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) use(event.dataTransfer.files[0]);
    });
  }
}

/** Ask another model; the pictures are sent again, because vectors of different models cannot be compared. */
async function chooseModel() {
  use($("model").value);
  Object.assign(now, { best: null, vector: null });
  $("heat").hidden = $("look-off").hidden = true;
  $("look-note").textContent = "";
  await refresh();
  await ask();
  if (other.file) await takeOther(other.file);
}

async function refresh() {
  const asked = ++now.asked;
  try {
    const fresh = await askInfo();
    if (asked !== now.asked) return; // another model was chosen
    const changed = fresh.model?.fingerprint !== now.info?.model?.fingerprint || fresh.models?.length !== now.info?.models?.length;
    now.info = fresh;
    now.model = models(fresh);
    if (changed) await Promise.all([showSnippet(), showGallery()]);
  } catch (error) {
    if (asked !== now.asked) return;
    if (error.code === "model_not_found") use(""); // unloaded meanwhile; the next time the default one is asked
    status(error.status === 503 ? { state: "not ready" } : null);
    return;
  }
  status(now.info);
}

function wire() {
  const files = { file: (list) => take(list[0], list[0].name), camera: (list) => take(list[0], "photo.jpg"), other: (list) => takeOther(list[0]), many: keepMany };
  for (const [id, use] of Object.entries(files)) {
    $(id).addEventListener("change", (event) => {
      const list = [...event.target.files];
      if (list.length) use(list);
      event.target.value = "";
    });
  }
  droppable(document.body, (file) => take(file, file.name));
  droppable($("drop"), (file) => take(file, file.name));
  droppable($("other-slot"), takeOther);
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) take(file, file.name);
  });
  $("paste").addEventListener("click", paste);
  $("look").addEventListener("click", look);
  $("look-off").addEventListener("click", () => ($("heat").hidden = $("look-off").hidden = true));
  $("keep").addEventListener("click", () => keep(now.blob, now.name).catch((error) => problem(error)));
  $("forget").addEventListener("click", () => gallery.empty().then(showGallery));
  $("copy").addEventListener("click", copy);
  $("tabs").addEventListener("keydown", moveTab);
  $("model").addEventListener("change", chooseModel);
  $("top_k").addEventListener("change", () => {
    $("bars").style.setProperty("--rows", topK());
    showSnippet();
    ask();
  });
  for (const radio of document.querySelectorAll("input[name=op]")) radio.addEventListener("change", showSnippet);
}

wire();
showSnippet();
showSamples();
await refresh();
setInterval(() => document.visibilityState === "visible" && refresh(), 4000);
document.documentElement.dataset.ready = "yes";
