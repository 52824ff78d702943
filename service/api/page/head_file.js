// Head files: safetensors with `weight` (classes x dimension) and `bias`, and the model and the names as metadata.

const FORMAT = "vim-head";
const LARGEST = 16 * 1024 * 1024;
const OPTIONAL = "domain."; // tensors of other programs; they are kept

/** {labels, weight, bias, fingerprint, recipe, others} -> the bytes of the file */
export function write({ labels, weight, bias, fingerprint, recipe, others = {} }) {
  const tensors = {
    weight: { dtype: "F32", shape: [labels.length, weight.length / labels.length], bytes: bytesOf(weight) },
    bias: { dtype: "F32", shape: [labels.length], bytes: bytesOf(bias) },
    ...others,
  };
  const metadata = { format: FORMAT, version: "1", fingerprint, labels: JSON.stringify(labels), recipe: JSON.stringify(recipe) };
  const header = { __metadata__: metadata };
  let end = 0;
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, (end += bytes.length)] };
  }
  const text = padded(new TextEncoder().encode(JSON.stringify(header)));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  return new Blob([length, text, ...Object.values(tensors).map(({ bytes }) => bytes)], { type: "application/octet-stream" });
}

/** Read a file for the model with this fingerprint and dimension. Throws an Error that says what is wrong. */
export async function read(file, fingerprint, dim) {
  if (file.size > LARGEST) throw new Error("The file is larger than 16 MB; a head file is not.");
  const buffer = await file.arrayBuffer();
  const { header, data } = opened(buffer);
  const { __metadata__: metadata = {}, weight, bias, ...others } = header;
  if (metadata.format !== FORMAT) throw new Error("This is not a head file: its format is not “vim-head”.");
  if (metadata.version !== "1") throw new Error(`This page reads head files of version 1, not ${metadata.version}.`);
  if (metadata.fingerprint !== fingerprint) {
    throw new Error(`This head belongs to another model: ${metadata.fingerprint}, and this model is ${fingerprint}.`);
  }
  const labels = names(metadata.labels);
  if (!same(weight, [labels.length, dim]) || !same(bias, [labels.length])) {
    throw new Error(`The head must have a weight of ${labels.length} × ${dim} numbers and a bias of ${labels.length}, float32.`);
  }
  const floats = (tensor) => new Float32Array(part(data, tensor).slice().buffer);
  const found = { labels, fingerprint, recipe: parsed(metadata.recipe), weight: floats(weight), bias: floats(bias) };
  if (![...found.weight, ...found.bias].every(Number.isFinite)) throw new Error("The head has numbers that are not finite.");
  return { ...found, others: kept(others, data) };
}

function opened(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    return { header, data: new Uint8Array(buffer, 8 + length) };
  } catch {
    throw new Error("This is not a head file: it is not in the format safetensors.");
  }
}

function names(text) {
  const labels = parsed(text);
  const distinct = Array.isArray(labels) && labels.every((one) => typeof one === "string") && new Set(labels).size === labels.length;
  if (!distinct || labels.length < 2) throw new Error("The head needs a list of two or more different names.");
  return labels;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

const same = (tensor, shape) => tensor?.dtype === "F32" && String(tensor.shape) === String(shape) && sizeOf(tensor) === 4 * shape.reduce((a, b) => a * b);
const sizeOf = ({ data_offsets: [start, end] }) => end - start;

function part(data, { data_offsets: [start, end] }) {
  if (end > data.length) throw new Error("The head file is shorter than it says.");
  return data.subarray(start, end);
}

function kept(tensors, data) {
  const ours = Object.entries(tensors).filter(([name]) => name.startsWith(OPTIONAL));
  return Object.fromEntries(ours.map(([name, one]) => [name, { dtype: one.dtype, shape: one.shape, bytes: part(data, one) }]));
}

const bytesOf = (floats) => new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);

/** Blanks at the end, so that the tensors begin at a multiple of 8. */
function padded(bytes) {
  const found = new Uint8Array(Math.ceil(bytes.length / 8) * 8).fill(32);
  found.set(bytes);
  return found;
}
