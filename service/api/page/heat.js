// The controls of the heat map: start and hide it, its progress, how opaque it is.

import * as saliency from "./saliency.js";
import { $, percent, problem } from "./show.js";
import { now, on } from "./state.js";

const OFF = 0.005; // a difference of scores that must be explained

let turn = 0;

export function init() {
  $("look").addEventListener("click", look);
  $("look-off").addEventListener("click", hide);
  $("opacity").addEventListener("input", fade);
  for (const event of ["picture", "cleared", "model"]) on(event, reset);
  on("answer", () => ($("look").disabled = !now.best || !now.bitmap || now.live));
  fade();
}

function reset(other = true) {
  if (other === false) return;
  turn++;
  hide();
  $("look").disabled = true;
  $("look-note").textContent = "";
  $("look-progress").classList.remove("on");
}

function hide() {
  $("heat").hidden = $("heat-tools").hidden = true;
}

function fade() {
  $("heat").style.setProperty("opacity", $("opacity").value / 100);
}

async function look() {
  const asked = ++turn;
  const best = now.best;
  const progress = (share) => {
    if (asked !== turn) return false;
    $("look-progress").value = share;
    $("look-note").textContent = `Covers one part after the other: ${Math.round(100 * share)} %`;
    return true;
  };
  $("look").disabled = true;
  $("look-progress").classList.add("on");
  try {
    const found = await saliency.look(now.bitmap, now.info, best.index, progress);
    if (found) show(found, best);
  } catch (error) {
    if (asked !== turn) return;
    $("look-note").textContent = "";
    problem(error, error.retryAfter ? look : null);
  }
  if (asked !== turn) return;
  $("look-progress").classList.remove("on");
  $("look").disabled = false;
}

function show(found, { label, score }) {
  saliency.draw($("heat"), found);
  $("heat").hidden = $("heat-tools").hidden = false;
  $("drop").scrollIntoView({ block: "nearest" }); // on a phone the picture is above the button
  const most = Math.max(...found.drops);
  const fall = `Covering the most important part changes “${label}” from ${percent(score)} to ${percent(Math.max(0, score - most))}.`;
  const weak = most < saliency.WEAK ? "No part alone matters much." : "";
  const copy = Math.abs(found.copy - score) > OFF ? `The map is made with copies of the picture, which is large; an uncovered copy has ${percent(found.copy)}.` : "";
  $("look-note").textContent = [fall, weak, copy].filter(Boolean).join(" ").replaceAll(" %", "\u00a0%");
  const count = found.drops.length + 1;
  $("look-note").title = `${count} pictures in ${found.seconds.toFixed(1)} s, in batches of ${found.batches.join(" + ")}`;
}
