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

const BULK = { "X-Request-Class": "bulk" };

export async function classify(blob, topK) {
  const answer = await post(at("v1/classify", { top_k: topK }), blob);
  const body = await answer.json();
  return { body, predictions: body.results[0].predictions, stages: stages(answer) };
}

export async function embed(blob) {
  const answer = await post(at("v1/embed"), blob, { Accept: "application/octet-stream" });
  return {
    vector: new Float32Array(await answer.arrayBuffer()),
    fingerprint: answer.headers.get("X-Model-Fingerprint"),
    stages: stages(answer),
  };
}

/** Scores of every class for many pictures, as one request of the bulk class. */
export async function classifyMany(blobs, classes) {
  const form = new FormData();
  blobs.forEach((blob, i) => form.append("image", blob, `${i}.jpg`));
  const answer = await post(at("v1/classify", { top_k: classes }), form, BULK);
  const { results, batches } = await answer.json();
  const failed = results.find((one) => one.error);
  if (failed) throw new Problem(failed.error.message, { code: failed.error.code });
  return { scores: results.map(byClass), batches };
}

export async function info() {
  return (await checked(await fetch(at("info")))).json();
}

function at(path, options = {}) {
  const query = new URLSearchParams(model ? { ...options, model } : options).toString();
  return query ? `${path}?${query}` : path;
}

function byClass({ predictions }) {
  return new Map(predictions.map(({ index, score }) => [index, score]));
}

async function post(path, body, headers = {}) {
  try {
    return await checked(await fetch(path, { method: "POST", body, headers }));
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
