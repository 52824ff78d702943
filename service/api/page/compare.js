// Compares the current picture with a second one.

import { embed } from "./api.js";
import { cosine } from "./gallery.js";
import * as picture from "./picture.js";
import { $, problem } from "./show.js";
import { now, on } from "./state.js";

const other = { file: null, unit: null, fingerprint: "" };

export function init({ droppable, choosable }) {
  choosable($("other"), ([file]) => take(file));
  droppable($("other-slot"), ([file]) => take(file));
  on("picture", left);
  for (const event of ["answer", "cleared"]) on(event, show);
  on("model", (changed) => changed && other.file && take(other.file));
}

function left() {
  if (now.bitmap) picture.show($("left"), now.bitmap);
  else picture.clear($("left"));
  $("left").setAttribute("aria-label", `Current picture: ${now.name}`);
  show();
}

function show() {
  const ready = now.unit && other.unit && !now.live && now.fingerprint === other.fingerprint;
  $("cosine").textContent = ready ? cosine(now.unit, other.unit).toFixed(3) : "–";
}

async function take(file) {
  Object.assign(other, { file, unit: null });
  show();
  picture.clear($("right"));
  try {
    const bitmap = await picture.read(file);
    if (bitmap) picture.show($("right"), bitmap);
    $("other-slot").classList.add("full");
    $("right").setAttribute("aria-label", `Second picture: ${file.name}`);
    const { unit, fingerprint: ours } = await embed(file);
    if (other.file === file) Object.assign(other, { unit, fingerprint: ours });
    show();
  } catch (error) {
    problem(error);
  }
}
