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
  let [parts, bias] = [new Float64Array(size * count), new Float64Array(count)];
  let [ahead, aheadBias] = [parts.slice(), bias.slice()];
  for (let step = 0; step < STEPS; step++) {
    const [newParts, newBias, logits] = [ahead.slice(), aheadBias.slice(), new Array(count)];
    let change = 0;
    for (let n = 0; n < size; n++) {
      for (let c = 0; c < count; c++) logits[c] = aheadBias[c];
      for (let m = 0; m < size; m++) {
        const product = kernel[n * size + m];
        for (let c = 0; c < count; c++) logits[c] += product * ahead[m * count + c];
      }
      const found = softmax(logits);
      for (let c = 0; c < count; c++) {
        const slope = shares[n] * (found[c] - (classes[n] === c ? 1 : 0));
        newParts[n * count + c] -= (slope + PENALTY * ahead[n * count + c]) / steepest;
        newBias[c] -= slope / steepest;
      }
    }
    ahead = newParts.map((value, i) => {
      change = Math.max(change, Math.abs(value - parts[i]));
      return value + push * (value - parts[i]);
    });
    aheadBias = newBias.map((value, c) => value + push * (value - bias[c]));
    [parts, bias] = [newParts, newBias];
    if (change * size < ENOUGH) break;
  }
  return { parts, bias };
}

/** The weights and bias for vectors that are neither centred nor scaled. */
function folded(parts, bias, centred, mean, scale) {
  const [dim, count] = [mean.length, bias.length];
  const weight = new Float32Array(count * dim);
  const shifted = Float32Array.from(bias, (start, c) => {
    const row = new Float64Array(dim);
    centred.forEach((vector, n) => vector.forEach((value, i) => (row[i] += parts[n * count + c] * value)));
    weight.set(row.map((value) => value / scale), c * dim);
    return start - dot(row, mean) / scale;
  });
  return { weight, bias: shifted };
}
