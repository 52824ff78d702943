// What the parts of the page share: the current picture with its answer, and the events by which parts tell each other.
//
// model    another model answers from now on, or the models have changed
// picture  there is another current picture, which has no answer yet
// answer   the answer of the current picture, or of one picture of the live camera
// cleared  there is no answer: what is shown of the last one must go
// frame    a picture of the live camera, with its answer

import { $ } from "./show.js";

export const now = {
  info: null, // of /info
  model: "", // named in requests and code; empty: no request has to name it
  labels: [], // of the model, as far as its answers have named them
  blob: null,
  name: "photo.jpg",
  bitmap: null,
  label: "", // what a sample shows, if it is one
  best: null, // the first prediction
  raw: null, // the embedding as the model computes it
  unit: null, // the same with length 1
  live: false,
};

const listeners = {};

export function on(name, listener) {
  (listeners[name] ??= []).push(listener);
}

export function emit(name, detail) {
  for (const listener of listeners[name] ?? []) listener(detail);
}

/** The part of the middle square that the model receives. */
export const share = () => (now.info?.preprocess ? now.info.preprocess.size / now.info.preprocess.resize : 1);
export const topK = () => Number($("top_k").value);
export const fingerprint = () => now.info?.model?.fingerprint ?? "";
