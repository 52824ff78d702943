// Connects the parts of the page: there is one current picture, which is sent again when it or an option changes.

import { classify, embed, info as askInfo, modelNames, use, used } from "./api.js";
import * as code from "./code.js";
import * as compare from "./compare.js";
import * as galleryView from "./gallery_view.js";
import * as heat from "./heat.js";
import * as live from "./live.js";
import * as picture from "./picture.js";
import * as samples from "./samples.js";
import { $, bars, knows, models, noProblem, nothing, percent, problem, status, timing, vector as showVector } from "./show.js";
import { emit, fingerprint, now, share, topK } from "./state.js";
import * as teach from "./teach.js";

let turn = 0; // of questions about the current picture
let taken = 0;
let refreshes = 0;

/** Make this the current picture; `label` is what a sample shows. */
async function take(blob, name = "photo.jpg", label = "") {
  live.stop();
  const asked = ++taken;
  const bitmap = await picture.read(blob);
  if (asked !== taken || now.live) return; // there is a newer picture
  Object.assign(now, { blob, name, label, bitmap, best: null, raw: null, unit: null });
  delete document.documentElement.dataset.answered;
  $("drop").classList.add("full");
  if (now.bitmap) picture.show($("preview"), now.bitmap, share());
  else picture.clear($("preview"));
  $("preview").setAttribute("aria-label", now.bitmap ? `${name}, as the model sees it` : `${name}: no preview in this browser`);
  emit("picture");
  await ask();
}

/** Ask about the current picture, and show the answer. */
async function ask() {
  if (!now.blob || now.live) return;
  const asked = ++turn;
  noProblem();
  $("answer").setAttribute("aria-busy", "true");
  try {
    const answer = await answerOf(now.blob);
    if (asked !== turn || now.live) return; // there is a newer picture
    present(answer);
  } catch (error) {
    if (asked !== turn || now.live) return;
    Object.assign(now, { best: null, raw: null, unit: null });
    $("answer").removeAttribute("aria-busy");
    nothing();
    problem(error, ask);
    emit("cleared");
  }
}

/** Ask for classes and embedding; with the camera both at once. The first answer names all classes of the model. */
async function answerOf(blob) {
  const started = performance.now();
  const classes = now.info?.model?.classes ?? 0;
  const wanted = now.labels.length ? topK() : classes;
  const asking = classes ? classify(blob, wanted) : null;
  if (!now.live) await asking;
  const [[found, seconds], embedded] = await Promise.all([timed(asking, started), embed(blob)]);
  if (found && embedded.fingerprint === fingerprint() && found.predictions.length === classes) {
    now.labels = found.predictions.toSorted((a, b) => a.index - b.index).map(({ label }) => label);
    knows(classes, now.labels);
  }
  return { found, embedded, seconds };
}

async function timed(asking, started) {
  return [await asking, (performance.now() - started) / 1000];
}

function present({ found, embedded, seconds }) {
  const predictions = found?.predictions.slice(0, topK()) ?? [];
  $("answer").removeAttribute("aria-busy");
  Object.assign(now, { raw: embedded.raw, unit: embedded.unit, fingerprint: embedded.fingerprint, best: predictions[0] ?? null });
  if (!now.live) $("bars").replaceChildren(); // rows that change places would count as a layout shift
  bars($("bars"), predictions);
  const doubt = found?.doubt ? " · perhaps none of these" : "";
  $("top").textContent = now.best ? `${now.best.label} ${percent(now.best.score)}${doubt}` : "";
  remark(found?.doubt ?? false);
  timing(found?.stages ?? embedded.stages, seconds);
  showVector(embedded.unit);
  $("raw").textContent = JSON.stringify(found?.body ?? { embedding: Array.from(embedded.raw) }, null, 2);
  if (!now.live) document.documentElement.dataset.answered = now.name;
  emit("answer");
}

/** Doubt comes first: whether the answer to a sample is right is said after it. */
function remark(doubt) {
  const known = now.label && now.best && now.labels.includes(now.label);
  const right = known && now.best.label === now.label;
  const truth = known ? `${right ? "Right" : "Wrong"}: this sample shows “${now.label}”.` : "";
  $("remark").textContent = [doubt && "This may be none of the classes that the model knows.", truth].filter(Boolean).join(" ");
  $("remark").dataset.kind = doubt ? "doubt" : known ? (right ? "right" : "wrong") : "";
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

/** Call `use` with the files that are dropped on this element. */
function droppable(target, use) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    target.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      target.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) use([...event.dataTransfer.files]);
    });
  }
}

/** Call `use` with the files that are chosen with this input. */
function choosable(input, use) {
  input.addEventListener("change", () => {
    const list = [...input.files];
    if (list.length) use(list);
    input.value = "";
  });
}

async function chooseModel() {
  use($("model").value);
  await refresh();
  await ask();
}

/** Read /info again. Vectors of different models cannot be compared, so the parts are told when the model changes. */
async function refresh(tries = 3) {
  const asked = ++refreshes;
  try {
    const fresh = await askInfo();
    if (asked !== refreshes) return; // another model was chosen
    const other = fresh.model?.fingerprint !== fingerprint();
    const changed = other || fresh.models?.length !== now.info?.models?.length;
    now.info = fresh;
    now.model = models(fresh) || used();
    if (other) {
      now.labels = [];
      knows(fresh.model.classes, []);
    }
    if (changed) emit("model", other);
  } catch (error) {
    if (asked !== refreshes) return;
    if (error.code === "model_not_found" && tries > 1 && (await useAnother())) return refresh(tries - 1);
    status(error.status === 503 ? { state: "not ready" } : null);
    return;
  }
  status(now.info);
}

/** After the model in use was unloaded: ask the default one, and if that is not loaded, any. Returns whether there is one. */
async function useAnother() {
  const [first] = used() ? [""] : await modelNames().catch(() => []);
  if (first !== undefined) use(first);
  return first !== undefined;
}

function wire() {
  choosable($("file"), ([file]) => take(file, file.name));
  choosable($("camera"), ([file]) => take(file, "photo.jpg"));
  droppable(document.body, ([file]) => take(file, file.name));
  droppable($("drop"), ([file]) => take(file, file.name));
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) take(file, file.name);
  });
  $("paste").addEventListener("click", paste);
  $("model").addEventListener("change", chooseModel);
  $("top_k").addEventListener("change", () => {
    $("bars").style.setProperty("--rows", topK());
    emit("model", false);
    ask();
  });
  for (const part of [code, compare, galleryView, heat, teach]) part.init({ take, droppable, choosable });
  live.init({ take, answerOf, present });
}

/** Answer the first sample, as soon as there is a model, unless the visitor was quicker. */
async function arrive() {
  if (first && now.info && !now.blob && !now.live && !turn) await first();
}

wire();
const [first] = await Promise.all([samples.init(take), refresh()]);
setInterval(() => document.visibilityState === "visible" && refresh().then(arrive), 4000);
document.documentElement.dataset.ready = "yes";
performance.mark("ready");
await arrive();
performance.mark("answered");
