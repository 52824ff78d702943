// The panel of code for other programs: one tab for each language or client, with the picture inside if wanted.

import { square } from "./picture.js";
import { $, element } from "./show.js";
import { now, on, topK } from "./state.js";
import { snippets } from "./snippets.js";

const MOST_BYTES = 48 * 1024; // of a picture inside the code; larger ones are made smaller
const SIDE = 320; // of those, in pixels

let chosen = 0;
let inside = ""; // base64 of the picture, if it is to be inside
let full = ""; // the code; a long picture is cut where it is shown

export function init() {
  $("copy").addEventListener("click", copy);
  $("tabs").addEventListener("keydown", move);
  for (const radio of document.querySelectorAll("input[name=op]")) radio.addEventListener("change", show);
  $("inside").addEventListener("change", encode);
  on("model", show);
  on("answer", () => now.live || encode());
  show();
}

async function encode() {
  $("inside").disabled = !now.blob;
  const wanted = $("inside").checked && now.blob;
  const small = wanted && (now.blob.size <= MOST_BYTES || !now.bitmap) ? now.blob : wanted && (await square(now.bitmap, SIDE));
  inside = small ? await base64(small) : "";
  $("inside-note").textContent = small && small !== now.blob ? "The picture inside is a smaller copy; its answer can differ a little." : "";
  show();
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function show() {
  const op = document.querySelector("input[name=op]:checked").value;
  const base = location.href.replace(/[?#].*$/, "").replace(/\/$/, "");
  const found = snippets({ base, op, topK: topK(), model: now.info?.model?.name ?? "demo", named: now.model, inside });
  chosen = Math.min(chosen, found.length - 1);
  $("tabs").replaceChildren(...found.map(({ name }, i) => tab(name, i)));
  full = found[chosen].code;
  $("snippet").textContent = inside ? full.replace(inside, `${inside.slice(0, 24)}…`) : full;
  $("needs").textContent = found[chosen].needs;
  $("panel").setAttribute("aria-labelledby", `tab-${chosen}`);
}

function tab(name, i) {
  const selected = i === chosen;
  const button = element("button", name, { type: "button", role: "tab", id: `tab-${i}`, "aria-selected": selected, "aria-controls": "panel", tabindex: selected ? 0 : -1 });
  button.addEventListener("click", () => choose(i));
  return button;
}

function choose(i) {
  chosen = i;
  show();
  $(`tab-${i}`).focus();
}

function move(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const count = $("tabs").children.length;
  if (step) choose((chosen + step + count) % count);
}

async function copy() {
  await navigator.clipboard.writeText(full);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}
