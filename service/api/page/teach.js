// Teach it: boxes of pictures, a head that is learned from their embeddings at once, its answers, its file.

import { embed, putHead } from "./api.js";
import * as headFile from "./head_file.js";
import { learn, PENALTY, scores } from "./learn.js";
import * as live from "./live.js";
import { clear, read, show } from "./picture.js";
import { $, bars, element } from "./show.js";
import { fingerprint, now, on } from "./state.js";

const MOST_BOXES = 10;
const MOST_PICTURES = 400; // in all boxes
const SHOWN = 8; // thumbnails in a box
const PAUSE_MS = 250; // the least between two rounds of learning while a box is filmed
const REST = 3; // and as a multiple of the time that the last round took, so that the page stays usable

let boxes = []; // {name, pictures: [{blob, raw, canvas}], item}
let head = null; // {labels, weight, bias, fingerprint, recipe, others}
let made = 0; // boxes, for their numbers
let filming = null; // the box that the camera's pictures go into
let waiting = 0;
let took = 0; // milliseconds of the last round of learning
let tools = {};

export function init(given) {
  tools = given;
  for (let i = 0; i < 2; i++) addBox();
  $("add-box").addEventListener("click", () => addBox().item.querySelector("input").focus());
  $("teach-clear").addEventListener("click", () => restart());
  $("export").addEventListener("click", exportFile);
  $("save").addEventListener("submit", save);
  tools.choosable($("import"), ([file]) => importFile(file));
  on("picture", () => (now.bitmap ? show($("taught-picture"), now.bitmap) : clear($("taught-picture"))));
  on("frame", frame);
  on("live", (isOn) => !isOn && film(null));
  for (const event of ["answer", "cleared"]) on(event, answer);
  on("model", (other) => other && embedAgain());
}

function restart(names = ["", ""]) {
  film(null);
  for (const { item } of boxes) item.remove();
  boxes = [];
  made = 0;
  head = null;
  for (const name of names) addBox(name);
  $("taught-note").textContent = "";
  answer();
}

function addBox(given) {
  made++;
  const name = given || `Class ${made}`;
  const box = { name, pictures: [], item: element("li", "", { class: "box" }) };
  const title = element("input", "", { type: "text", value: name, maxlength: 60, "aria-label": `Name of class ${made}` });
  title.addEventListener("input", () => rename(box, title.value));
  const files = element("label", "Add files", { class: "button" });
  const input = element("input", "", { type: "file", accept: "image/*", multiple: "" });
  files.append(input);
  tools.choosable(input, (list) => addFiles(box, list));
  const [current, camera, remove] = ["Add current", "Film", "×"].map((text) => element("button", text, { type: "button", class: "button" }));
  current.addEventListener("click", () => now.blob && now.raw && add(box, now.blob, now.raw).then(learnSoon));
  camera.addEventListener("click", () => film(filming === box ? null : box));
  camera.dataset.film = "";
  camera.disabled = !live.possible();
  remove.setAttribute("aria-label", `Remove class ${made}`);
  remove.addEventListener("click", () => removeBox(box));
  const [top, row] = [element("div", "", { class: "name" }), element("div", "", { class: "row" })];
  top.append(title, remove);
  row.append(files, current, camera);
  box.item.append(top, element("div", "", { class: "pile" }), element("p", "", { class: "note" }), row);
  tools.droppable(box.item, (list) => addFiles(box, list));
  boxes.push(box);
  $("boxes").append(box.item);
  showBox(box);
  showButtons();
  return box;
}

function removeBox(box) {
  if (filming === box) film(null);
  if (head?.imported) head = null;
  boxes = boxes.filter((one) => one !== box);
  box.item.remove();
  learnSoon();
}

function rename(box, name) {
  box.name = name;
  if (!head?.imported) return learnSoon();
  head.labels = labels();
  answer();
}

/** The names of the boxes; names that are empty or taken get a number. */
function labels() {
  const taken = new Set();
  return used().map(({ name }, i) => {
    let label = name.trim() || `Class ${i + 1}`;
    while (taken.has(label)) label += " (2)";
    taken.add(label);
    return label;
  });
}

/** The boxes that are classes: of an imported head all, otherwise those with pictures. */
const used = () => (head?.imported ? boxes : boxes.filter(({ pictures }) => pictures.length));

async function addFiles(box, files) {
  try {
    for (const file of files) {
      const found = await embed(file);
      await add(box, file, found.raw);
      learnSoon();
    }
  } catch (error) {
    say(error);
  }
}

async function add(box, blob, raw) {
  if (boxes.reduce((sum, { pictures }) => sum + pictures.length, 0) >= MOST_PICTURES) {
    film(null);
    throw new Error(`The boxes hold at most ${MOST_PICTURES} pictures.`);
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: 80, height: 80 });
  const bitmap = await read(blob);
  if (bitmap) show(canvas, bitmap);
  bitmap?.close();
  box.pictures.push({ blob, raw, canvas });
  showBox(box);
}

function showBox(box) {
  const count = box.pictures.length;
  const thumbs = box.pictures.slice(-SHOWN).map((picture) => {
    const button = element("button", "", { type: "button", title: "Remove this picture", "aria-label": "Remove this picture" });
    button.append(picture.canvas);
    button.addEventListener("click", () => {
      box.pictures = box.pictures.filter((one) => one !== picture);
      showBox(box);
      learnSoon();
    });
    return button;
  });
  box.item.querySelector(".pile").replaceChildren(...thumbs);
  box.item.querySelector("p").textContent = count ? `${count} ${count === 1 ? "picture" : "pictures"}` : "Drop pictures here.";
}

async function film(box) {
  filming = box && (await live.start()) ? box : null;
  for (const one of boxes) one.item.querySelector("[data-film]").textContent = one === filming ? "Stop filming" : "Film";
}

async function frame(blob) {
  show($("taught-picture"), $("video"));
  if (!filming) return;
  try {
    await add(filming, blob, now.raw);
    learnSoon();
  } catch (error) {
    say(error);
  }
}

function say(error) {
  $("taught-note").textContent = error.message;
}

function learnSoon() {
  waiting ||= setTimeout(learnNow, filming ? Math.max(PAUSE_MS, REST * took) : 0);
}

function learnNow() {
  waiting = 0;
  const full = boxes.filter(({ pictures }) => pictures.length);
  showButtons();
  if (full.length < 2) {
    if (!head?.imported) head = null;
    return answer();
  }
  const started = performance.now();
  head = null;
  const counts = full.map(({ pictures }) => pictures.length);
  const learned = learn(full.map(({ pictures }) => pictures.map(({ raw }) => raw)));
  const recipe = { method: "multinomial logistic regression", penalty: PENALTY, pictures: counts, by: "demo page" };
  head = { ...learned, labels: labels(), fingerprint: fingerprint(), recipe, others: {} };
  took = performance.now() - started;
  const total = counts.reduce((a, b) => a + b);
  $("taught-note").textContent = `Learned from ${total} pictures in ${took.toFixed(0)} ms.`;
  answer();
}

/** What the head says of the current picture. */
function answer() {
  showButtons();
  const ready = head && now.raw && now.fingerprint === head.fingerprint;
  const found = ready ? scores(head, now.raw).map((score, c) => ({ label: head.labels[c], score })) : [];
  bars($("taught"), found);
  if (!head) $("taught-note").textContent = "Two boxes need pictures.";
}

function showButtons() {
  $("export").disabled = $("put").disabled = !head;
  $("add-box").disabled = boxes.length >= MOST_BOXES;
}

function exportFile() {
  const url = URL.createObjectURL(headFile.write(head));
  element("a", "", { href: url, download: "head.safetensors" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function importFile(file) {
  try {
    const found = await headFile.read(file, fingerprint(), now.info.model.embedding_dim);
    restart(found.labels);
    head = { ...found, imported: true };
    $("taught-note").textContent = `Imported ${found.labels.length} classes. Pictures in two boxes teach it anew.`;
    answer();
  } catch (error) {
    say(error);
  }
}

async function save(event) {
  event.preventDefault();
  const [name, key] = [$("head-name").value.trim(), $("head-key").value];
  $("head-key").value = "";
  try {
    await putHead(name, headFile.write(head), key);
    $("save-note").textContent = `Saved. Ask it with /v1/classify?head=${encodeURIComponent(name)}`;
  } catch (error) {
    $("save-note").textContent = error.status ? `${error.message} (${error.status})` : error.message;
  }
}

/** Another model answers: its embeddings are needed for the same pictures. */
async function embedAgain() {
  if (head?.imported) restart();
  head = null;
  answer();
  try {
    for (const picture of boxes.flatMap(({ pictures }) => pictures)) picture.raw = (await embed(picture.blob)).raw;
    learnSoon();
  } catch (error) {
    say(error);
  }
}
