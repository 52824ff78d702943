// Shows an answer: bars, stages, the vector, errors, the status, what the model knows.

export const $ = (id) => document.getElementById(id);
export const percent = (value) => `${(100 * value).toFixed(1)} %`;

export function element(name, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(name), { textContent: text });
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Update a list of bars. A row that is still in the list is kept, so that its bar moves. */
export function bars(list, predictions) {
  const old = new Map(Array.from(list.children, (row) => [row.dataset.label, row]));
  const rows = predictions.map(({ label, score }) => {
    const row = old.get(label) ?? barOf(label);
    row.querySelector("span").textContent = percent(score);
    row.querySelector("i").style.setProperty("--share", `${100 * score}%`);
    return row;
  });
  for (const row of old.values()) if (!rows.includes(row)) row.remove();
  rows.forEach((row, i) => list.children[i] !== row && list.insertBefore(row, list.children[i] ?? null));
}

function barOf(label) {
  const row = element("li");
  row.dataset.label = label;
  row.append(element("b", label), element("span"), element("i", "", { "aria-hidden": "true" }));
  return row;
}

const pair = (name, value) => {
  const row = element("div");
  row.append(element("dt", name), element("dd", value));
  return row;
};

export function timing({ times, batch }, seconds) {
  const total = times.find(([name]) => name === "total")?.[1] ?? 0;
  const parts = times.filter(([name]) => name !== "total");
  const track = element("div", "", { class: "track", "aria-hidden": "true" });
  for (const [i, [, milliseconds]] of parts.entries()) {
    const part = element("i");
    part.style.setProperty("--part", Math.max(milliseconds, 0.001));
    part.style.setProperty("--shade", 1 - 0.7 * (i / parts.length));
    track.append(part);
  }
  const list = element("dl");
  list.append(...parts.map(([name, value]) => pair(name, `${value.toFixed(1)} ms`)));
  list.append(pair("in the server", `${total.toFixed(1)} ms`), pair("with the network", `${(1000 * seconds).toFixed(0)} ms`));
  list.append(pair("batch", batch));
  $("timing").replaceChildren(track, list);
}

export function vector(values) {
  const canvas = $("vector");
  canvas.width = values.length;
  canvas.height = 1;
  const most = Math.max(...values.map(Math.abs));
  const to = canvas.getContext("2d");
  values.forEach((value, i) => {
    to.fillStyle = `hsl(${value < 0 ? 205 : 22} 75% 50% / ${Math.abs(value) / most})`;
    to.fillRect(i, 0, 1, 1);
  });
  canvas.setAttribute("aria-label", `Embedding of ${values.length} numbers`);
  $("vector-note").textContent = `${values.length} numbers of unit length, one stripe each: orange above zero, blue below.`;
}

/** Nothing of an old answer stays. */
export function nothing() {
  for (const id of ["bars", "timing", "top"]) $(id).replaceChildren();
  $("raw").textContent = "{}";
  $("remark").textContent = "";
  $("vector").width = $("vector").width; // clears it
  $("vector").setAttribute("aria-label", "No embedding yet");
  $("vector-note").textContent = "";
}

let ticking = 0;

/** Show a problem; with Retry-After it counts down, then calls `again` if it is given. */
export function problem(error, again) {
  clearInterval(ticking);
  const box = $("error");
  const line = element("span", error.message);
  const facts = [error.status || "", error.code, error.requestId && `request ${error.requestId}`].filter(Boolean);
  const count = element("small", "", { id: "countdown" });
  box.replaceChildren(line, element("small", facts.join(" · ")), count);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" }); // the cause may be in another part of the page
  if (!error.retryAfter || !again) return;
  let left = error.retryAfter;
  const tick = () => {
    count.textContent = left > 0 ? `Trying again in ${left} s` : "Trying again…";
    if (left-- > 0) return;
    clearInterval(ticking);
    again();
  };
  tick();
  ticking = setInterval(tick, 1000);
}

export function noProblem() {
  clearInterval(ticking);
  $("error").hidden = true;
}

/** With several models, offer those that are ready, and the one in use; returns the name in use, else "". */
export function models({ models: all = [], model }) {
  const several = all.length > 1;
  const names = all.filter(({ name, state }) => state === "ready" || name === model.name).map(({ name }) => name);
  const select = $("model");
  const shown = Array.from(select.options, (option) => option.value);
  if (String(shown) !== String(names)) select.replaceChildren(...names.map((name) => element("option", name, { value: name })));
  select.value = model.name;
  $("choice").hidden = !several;
  return several ? model.name : "";
}

export function status(info) {
  const set = (name, text) => (document.querySelector(`[data-status="${name}"]`).textContent = text);
  document.querySelector('[data-status="state"]').dataset.ok = info?.state === "ready" ? "yes" : "no";
  set("state", info?.state ?? "unreachable");
  if (!info?.model) return;
  set("model", info.model.name);
  set("family", info.model.family);
  set("fingerprint", info.model.fingerprint);
  set("device", info.device.name);
  set("scan", info.scan.name);
  set("dtype", info.dtype);
  set("queue", `${info.queue.images} of ${info.limits.queue_images}`);
  $("version").textContent = `Version ${info.version}.`;
}

const LISTED = 20; // more names than this are behind a click
const SOME = 8; // of those, as examples

/** Say what the model can answer: how many classes, and which. */
export function knows(classes, labels) {
  if (!classes) {
    $("knows").textContent = "This model has no classes. It computes embeddings only.";
  } else if (classes <= LISTED && labels.length) {
    $("knows").replaceChildren(`The model knows ${classes} classes: `, ...labels.flatMap((label, i) => [i ? ", " : "", element("b", label)]), ". It answers every picture with these.");
  } else {
    const some = labels.length ? `, such as ${labels.slice(0, SOME).join(", ")}` : "";
    $("knows").textContent = `The model knows ${classes} classes${some}. It answers every picture with these.`;
  }
  $("classes").hidden = !classes || classes <= LISTED;
  $("class-list").textContent = labels.join(", ");
}
