// Shows the gallery: a map of its pictures, and a list in which the nearest to the current picture come first.

import { embed } from "./api.js";
import * as gallery from "./gallery.js";
import { plane } from "./map.js";
import * as picture from "./picture.js";
import * as samples from "./samples.js";
import { $, element, problem } from "./show.js";
import { fingerprint, now, on } from "./state.js";

const NEIGHBOURS = 3;
const SAME = 0.9999; // the cosine from which a picture counts as the current one itself

let take = null;
let place = null; // from a vector to its place on the map
let turn = 0;
let known = []; // the pictures on the map: {unit, x, y}

export function init({ take: given, choosable }) {
  take = given;
  choosable($("many"), keepMany);
  $("keep").addEventListener("click", () => keepMany([new File([now.blob], now.name)]));
  $("keep-samples").addEventListener("click", async () => keepMany(await samples.files()));
  $("forget").addEventListener("click", () => gallery.empty().then(show));
  on("model", show);
  on("cleared", show);
  on("answer", () => (now.live ? mark() : show()));
}

async function keepMany(files) {
  try {
    for (const file of files) await keep(file);
  } catch (error) {
    problem(error);
  }
  await show();
}

async function keep(file) {
  const bitmap = await picture.read(file);
  if (!bitmap) throw new Error(`${file.name}: this browser cannot show it`);
  const { unit, fingerprint: ours } = await embed(file);
  await gallery.add({ name: file.name, vector: unit, fingerprint: ours, thumbnail: await picture.square(bitmap, 144), blob: file });
}

async function show() {
  const asked = ++turn;
  $("keep").disabled = !now.unit || !(now.bitmap || now.live);
  const pictures = gallery.ordered(await gallery.all().catch(() => []), now.unit, fingerprint());
  const drawn = await Promise.all(pictures.map(async (one) => ({ ...one, bitmap: await picture.read(one.thumbnail) })));
  if (asked !== turn) return; // another call shows newer pictures
  $("forget").hidden = !pictures.length;
  $("map").classList.toggle("empty", !pictures.length);
  $("gallery").replaceChildren(...drawn.map(listed));
  place = pictures.length ? plane(pictures.map(({ vector }) => vector)) : null;
  known = drawn.map((one) => ({ ...one, at: place(one.vector) }));
  $("points").replaceChildren(...known.map(point));
  $("map").setAttribute("aria-label", `Map of ${known.length} pictures`);
  mark();
}

function canvasOf(bitmap) {
  const canvas = element("canvas", "", { width: 144, height: 144, "aria-hidden": "true" });
  if (bitmap) picture.show(canvas, bitmap);
  return canvas;
}

function listed({ name, bitmap, blob, cosine }) {
  const button = element("button", "", { type: "button", class: "thumb", title: name });
  button.append(canvasOf(bitmap));
  if (cosine !== null) button.append(element("b", cosine.toFixed(3)));
  button.append(element("span", name));
  button.addEventListener("click", () => take(blob, name));
  const item = element("li");
  item.append(button);
  return item;
}

/** A picture on the map; the list has the same pictures for the keyboard and for screen readers. */
function point({ name, bitmap, blob, at }) {
  const canvas = canvasOf(bitmap);
  canvas.title = name;
  put(canvas, at);
  canvas.addEventListener("click", () => take(blob, name));
  return canvas;
}

function put(target, [x, y]) {
  target.style.setProperty("left", `${5 + 90 * x}%`);
  target.style.setProperty("top", `${9 + 82 * y}%`);
}

/** The place of the current picture, with lines to its nearest neighbours. */
function mark() {
  const visible = Boolean(place && now.unit && now.fingerprint === fingerprint());
  $("here").hidden = !visible;
  $("lines").replaceChildren();
  if (!visible) return;
  const at = place(now.unit);
  put($("here"), at);
  const nearest = known.map((one) => ({ at: one.at, cosine: gallery.cosine(now.unit, one.vector) })).sort((a, b) => b.cosine - a.cosine);
  const others = nearest.filter(({ cosine }) => cosine < SAME);
  $("lines").replaceChildren(...others.slice(0, NEIGHBOURS).map((one) => line(at, one.at)));
}

function line([x1, y1], [x2, y2]) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const ends = { x1: 5 + 90 * x1, y1: 9 + 82 * y1, x2: 5 + 90 * x2, y2: 9 + 82 * y2 };
  for (const [key, value] of Object.entries(ends)) made.setAttribute(key, `${value}%`);
  return made;
}
