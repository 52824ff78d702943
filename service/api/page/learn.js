// Learns a classifier head from embeddings: multinomial logistic regression with an L2 penalty. Only numbers, no page.
//
// Minimised: the mean cross-entropy, in which every class counts the same however many pictures it has, plus
// PENALTY / 2 times the squared weights. The embeddings are centred and scaled so that their mean squared length is 1.
// The weights are a sum of embeddings, so the steps need only their products with each other (a kernel).

export const PENALTY = 0.003; // near the best log loss with 2 to 5 kinds of garment and 1 to 20 photographs of each
const STEPS = 500;
const ENOUGH = 1e-4; // the largest change of a score that ends the steps

/** Vectors by class (lists of Float32Array) -> {weight (C x D), bias (C)} for the vectors as they are. */
export function learn(byClass) {
  const vectors = byClass.flat();
  const classes = byClass.flatMap((list, c) => list.map(() => c));
  const shares = byClass.flatMap((list) => list.map(() => 1 / (byClass.length * list.length)));
  const { centred, mean, scale } = standardised(vectors, shares);
  const { parts, bias } = descend(products(centred), classes, shares, byClass.length);
  return folded(parts, bias, centred, mean, scale);
}

/** softmax(weight · vector + bias) */
export function scores({ weight, bias }, vector) {
  const dim = vector.length;
  const logits = Array.from(bias, (start, c) => {
    let sum = start;
    for (let i = 0; i < dim; i++) sum += weight[c * dim + i] * vector[i];
    return sum;
  });
  return softmax(logits);
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

function standardised(vectors, shares) {
  const mean = new Float64Array(vectors[0].length);
  vectors.forEach((vector, n) => vector.forEach((value, i) => (mean[i] += shares[n] * value)));
  const centred = vectors.map((vector) => Float64Array.from(vector, (value, i) => value - mean[i]));
  const square = centred.reduce((sum, vector, n) => sum + shares[n] * dot(vector, vector), 0);
  const scale = Math.sqrt(square) || 1; // 0 if all vectors are the same
  for (const vector of centred) vector.forEach((value, i) => (vector[i] = value / scale));
  return { centred, mean, scale };
}

/** Products of all pairs of vectors, row by row. */
export function products(vectors) {
  const count = vectors.length;
  const found = new Float64Array(count * count);
  for (let a = 0; a < count; a++) {
    for (let b = 0; b <= a; b++) found[a * count + b] = found[b * count + a] = dot(vectors[a], vectors[b]);
  }
  return found;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Accelerated gradient descent (Nesterov) on the part that each picture has in each class, and the bias. */
function descend(kernel, classes, shares, count) {
  const size = classes.length;
  const steepest = 0.5 + PENALTY; // bounds the curvature, since the mean squared length is 1
  const push = (Math.sqrt(steepest) - Math.sqrt(PENALTY)) / (Math.sqrt(steepest) + Math.sqrt(PENALTY));
  const rows = classes.map((_, n) => kernel.subarray(n * size, (n + 1) * size));
  const zeros = () => Array.from({ length: count }, () => new Float64Array(size));
  let [parts, ahead, bias, aheadBias] = [zeros(), zeros(), new Float64Array(count), new Float64Array(count)];
  for (let step = 0; step < STEPS; step++) {
    const [next, nextBias] = [zeros(), aheadBias.slice()];
    for (let n = 0; n < size; n++) {
      const found = softmax(ahead.map((one, c) => aheadBias[c] + dot(rows[n], one)));
      for (let c = 0; c < count; c++) {
        const slope = shares[n] * (found[c] - (classes[n] === c ? 1 : 0));
        next[c][n] = ahead[c][n] - (slope + PENALTY * ahead[c][n]) / steepest;
        nextBias[c] -= slope / steepest;
      }
    }
    let change = 0;
    for (let c = 0; c < count; c++) {
      for (let n = 0; n < size; n++) {
        const moved = next[c][n] - parts[c][n];
        ahead[c][n] = next[c][n] + push * moved;
        change = Math.max(change, Math.abs(moved));
      }
      aheadBias[c] = nextBias[c] + push * (nextBias[c] - bias[c]);
    }
    [parts, bias] = [next, nextBias];
    if (change * size < ENOUGH) break;
  }
  return { parts, bias };
}

/** The weights and bias for vectors that are neither centred nor scaled. */
function folded(parts, bias, centred, mean, scale) {
  const dim = mean.length;
  const weight = new Float32Array(bias.length * dim);
  const shifted = Float32Array.from(bias, (start, c) => {
    const row = new Float64Array(dim);
    centred.forEach((vector, n) => vector.forEach((value, i) => (row[i] += parts[c][n] * value)));
    weight.set(row.map((value) => value / scale), c * dim);
    return start - dot(row, mean) / scale;
  });
  return { weight, bias: shifted };
}
