// Places vectors in a plane so that those that are alike are near each other: principal component analysis (PCA).

import { products } from "./learn.js";

const ROUNDS = 100; // of the power method

/** A function from a vector to [x, y], both from 0 to 1 for the vectors given here. */
export function plane(vectors) {
  const mean = vectors[0].map((_, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length);
  const centred = vectors.map((vector) => Float64Array.from(vector, (value, i) => value - mean[i]));
  const axes = directions(centred);
  const place = (vector) => axes.map((axis) => axis.reduce((sum, value, i) => sum + value * (vector[i] - mean[i]), 0));
  const places = vectors.map(place);
  const ranges = axes.map((_, k) => [Math.min(...places.map((one) => one[k])), Math.max(...places.map((one) => one[k]))]);
  return (vector) => place(vector).map((value, k) => within(value, ranges[k]));
}

function within(value, [least, most]) {
  return most - least < 1e-9 ? 0.5 : Math.min(1, Math.max(0, (value - least) / (most - least)));
}

/** The two directions in which the vectors differ most, from the products of the vectors. */
function directions(centred) {
  const [count, left] = [centred.length, products(centred)];
  return [0, 1].map((k) => {
    let found = Float64Array.from(centred, (_, n) => Math.cos(n * (k + 1)) + 0.1);
    let value = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const next = found.map((_, a) => found.reduce((sum, one, b) => sum + left[a * count + b] * one, 0));
      value = Math.hypot(...next);
      if (value < 1e-12) return new Float64Array(centred[0].length);
      found = next.map((one) => one / value);
    }
    left.forEach((_, i) => (left[i] -= value * found[Math.floor(i / count)] * found[i % count]));
    const axis = new Float64Array(centred[0].length);
    centred.forEach((vector, n) => vector.forEach((one, i) => (axis[i] += found[n] * one)));
    return axis;
  });
}
