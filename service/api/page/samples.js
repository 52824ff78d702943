// The sample photographs: one is answered on arrival, and all are marked as answered rightly or wrongly.

import { classifyMany } from "./api.js";
import { $, element } from "./show.js";
import { fingerprint, now, on } from "./state.js";

let shown = []; // {file, label, button, blob}
let marked = ""; // the fingerprint of the model whose answers the marks are about

/** Show the samples; returns a function that makes the first one the current picture, if there is one. */
export async function init(take) {
  on("model", (other) => other && unmark());
  on("answer", () => now.labels.length && marked !== fingerprint() && mark());
  const listed = await fetch("samples").then((answer) => (answer.ok ? answer.json() : [])).catch(() => []);
  shown = listed.map((one) => ({ ...one, button: thumb(one) }));
  $("samples").replaceChildren(...shown.map(({ button }) => button));
  for (const one of shown) one.button.addEventListener("click", async () => take(await blobOf(one), one.file, one.label));
  shown.slice(0, 1).forEach(blobOf); // already, beside the page's other first requests
  return shown.length ? async () => take(await blobOf(shown[0]), shown[0].file, shown[0].label) : null;
}

export async function files() {
  return Promise.all(shown.map(async (one) => new File([await blobOf(one)], one.file, { type: "image/jpeg" })));
}

/** A promise of the file. */
function blobOf(one) {
  one.blob ??= fetch(`samples/${one.file}`).then((answer) => answer.blob());
  return one.blob;
}

function thumb({ file, label }) {
  const button = element("button", "", { type: "button", class: "thumb" });
  button.append(element("img", "", { src: `samples/${file}`, alt: "", width: 72, height: 72 }), element("span", label));
  return button;
}

function unmark() {
  marked = "";
  for (const { button } of shown) button.querySelector("em")?.remove();
}

/** Ask about all samples at once, and mark those that the model has the class for. */
async function mark() {
  const known = shown.filter(({ label }) => now.labels.includes(label));
  const asked = (marked = fingerprint());
  if (!known.length) return;
  try {
    const { predictions } = await classifyMany(await Promise.all(known.map(blobOf)), 1);
    if (asked !== marked) return; // another model answers now
    known.forEach(({ button, label }, i) => markOne(button, predictions[i][0].label === label));
  } catch {
    // Without marks: the samples are no less useful.
  }
}

function markOne(button, right) {
  button.querySelector("em")?.remove();
  const text = right ? "The model answers this rightly" : "The model answers this wrongly";
  button.append(element("em", right ? "✓" : "✗", { role: "img", "aria-label": text, title: text, class: right ? "right" : "wrong" }));
}
