// The live camera: one picture after the other is asked about, each when the last one has its answer.

import { square } from "./picture.js";
import { $, noProblem, nothing, problem } from "./show.js";
import { emit, now } from "./state.js";

const LEAST_MS = 80; // between two pictures: at most 12 a second, so that one camera leaves the server free for others
const AVERAGED = 8; // pictures, for the rate

let stream = null;
let parts = {};

export const possible = () => window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

export function init(given) {
  parts = given;
  $("live").addEventListener("click", () => (stream ? finish() : start()));
  $("live").disabled = !possible();
  $("live-note").hidden = possible();
}

/** Start the camera, unless it is on; returns whether it is. */
export async function start() {
  if (stream) return true;
  try {
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", ...size } });
  } catch (error) {
    problem(new Error(`The camera cannot be used: ${error.message}`));
    return false;
  }
  noProblem();
  Object.assign(now, { live: true, name: "camera.jpg", label: "", bitmap: null, best: null, raw: null, unit: null });
  emit("picture");
  delete document.documentElement.dataset.answered;
  $("video").srcObject = stream;
  await $("video").play();
  if (!stream) return false; // stopped meanwhile
  shown(true);
  loop(stream);
  return true;
}

export function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  now.live = false;
  $("video").srcObject = null;
  shown(false);
}

/** Stop; the last picture stays, as the current one. */
function finish() {
  stop();
  return now.blob && parts.take(now.blob, now.name);
}

function shown(on) {
  $("video").hidden = !on;
  $("live").textContent = on ? "Stop the camera" : "Live camera";
  $("bars").setAttribute("aria-live", on ? "off" : "polite"); // several changes a second cannot be read out
  $("timing").setAttribute("aria-live", on ? "off" : "polite");
  $("drop").classList.toggle("full", on || Boolean(now.blob));
  $("seen").textContent = on ? "Live: the middle of the camera's picture." : "What the model sees: the middle of the picture, made square.";
  emit("live", on);
}

async function loop(ours) {
  const times = [];
  while (stream === ours) {
    const started = performance.now();
    if (document.visibilityState === "visible") {
      try {
        await one(ours);
        if (stream !== ours) return;
      } catch (error) {
        if (stream !== ours) return;
        if (!error.retryAfter) return failed(error);
        $("seen").textContent = "Live: the server is busy.";
        await pause(1000 * error.retryAfter);
      }
      times.push(performance.now());
      if (times.length > AVERAGED) rate(times);
    }
    await pause(Math.max(LEAST_MS - (performance.now() - started), 0));
  }
}

async function one(ours) {
  const blob = await square($("video"), 2 * now.info.preprocess.resize, 0.9);
  const answer = await parts.answerOf(blob);
  if (stream !== ours) return;
  now.blob = blob;
  parts.present(answer);
  emit("frame", blob);
}

function failed(error) {
  stop();
  nothing();
  problem(error);
  emit("cleared");
}

function rate(times) {
  const seconds = (times.at(-1) - times.shift()) / 1000;
  $("seen").textContent = `Live: ${(AVERAGED / seconds).toFixed(0)} pictures a second.`;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
