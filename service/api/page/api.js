// Requests to the service; every failure becomes a Problem with the content of the answer.

export class Problem extends Error {
  constructor(message, { status = 0, code = "", requestId = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

let model = ""; // of all requests; empty: the server's default

/** Ask this model from now on; "" is the server's default one. */
export function use(name) {
  model = name;
}

export const used = () => model;

const UNUSUAL = 0.05; // share of the pictures like the taught ones that look as unusual
const BULK = { "X-Request-Class": "bulk" };

/** `doubt`: the picture is unlike those that the model learned from, as far as the server can tell. */
export async function classify(blob, topK) {
  const answer = await post(at("v1/classify", { top_k: topK }), blob);
  const body = await answer.json();
  const [{ predictions, in_domain: inDomain }] = body.results;
  return { body, predictions, doubt: (inDomain ?? 1) < UNUSUAL, stages: stages(answer) };
}

/** The embedding as the model computes it, and the same with length 1. */
export async function embed(blob) {
  const answer = await post(at("v1/embed", { normalize: false }), blob, { Accept: "application/octet-stream" });
  const raw = new Float32Array(await answer.arrayBuffer());
  const length = Math.hypot(...raw) || 1;
  return { raw, unit: raw.map((value) => value / length), fingerprint: answer.headers.get("X-Model-Fingerprint"), stages: stages(answer) };
}

/** Predictions for many pictures, best first, as one request of the bulk class. */
export async function classifyMany(blobs, topK) {
  const form = new FormData();
  blobs.forEach((blob, i) => form.append("image", blob, `${i}.jpg`));
  const { results, batches } = await (await post(at("v1/classify", { top_k: topK }), form, BULK)).json();
  const failed = results.find((one) => one.error);
  if (failed) throw new Problem(failed.error.message, { code: failed.error.code });
  return { predictions: results.map((one) => one.predictions), batches };
}

export async function info() {
  return (await checked(await fetch(at("info")))).json();
}

/** The names of the models, for the case that the default one is not loaded. */
export async function modelNames() {
  const { data } = await (await checked(await fetch("v1/models"))).json();
  return data.map(({ id }) => id);
}

export async function putHead(name, file, key) {
  const headers = { "Content-Type": "application/octet-stream", ...(key && { Authorization: `Bearer ${key}` }) };
  await send(at(`v1/heads/${encodeURIComponent(name)}`), { method: "PUT", body: file, headers });
}

function at(path, options = {}) {
  const query = new URLSearchParams(model ? { ...options, model } : options).toString();
  return query ? `${path}?${query}` : path;
}

function post(path, body, headers = {}) {
  return send(path, { method: "POST", body, headers });
}

async function send(path, request) {
  try {
    return await checked(await fetch(path, request));
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem("The server cannot be reached.");
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(body.detail ?? body.error ?? answer.statusText, {
    status: answer.status,
    code: body.code ?? "",
    requestId: answer.headers.get("X-Request-ID") ?? "",
    retryAfter: Number(answer.headers.get("Retry-After") ?? 0),
  });
}

/** `Server-Timing: decode;dur=1.2, batch;desc="4"` -> {times: [["decode", 1.2]], batch: "4"} */
export function stages(answer) {
  const header = answer.headers.get("Server-Timing") ?? "";
  const parts = header.split(",").map((part) => part.trim().split(";"));
  const times = parts.flatMap(([name, value]) => (value?.startsWith("dur=") ? [[name, Number(value.slice(4))]] : []));
  const batch = parts.find(([name]) => name === "batch")?.[1]?.replace(/^desc="(.*)"$/, "$1") ?? "";
  return { times, batch };
}
