// Occlusion saliency: how much the score falls when a part of the picture is covered.

import { classifyMany } from "./api.js";
import { covered } from "./picture.js";

/** The number of cells per side: the patch grid, or its largest divisor that fits the most images of one request. */
export function gridFor(info) {
  const { image_size: size, patch_size: patch, stride } = info.model.config;
  const tokens = Math.floor((size[0] - patch) / stride) + 1;
  const most = Math.floor(Math.sqrt(Math.min(info.limits.max_images, info.limits.queue_images) - 1));
  const divisors = Array.from({ length: most }, (_, i) => most - i).filter((n) => tokens % n === 0);
  return divisors[0] >= 4 ? divisors[0] : most;
}

/** -> {grid, drops, whole, index, batches, seconds}: per cell how far the score of class `index` falls. */
export async function look(bitmap, info, index) {
  const { resize, size, mean } = info.preprocess;
  const grid = gridFor(info);
  const grey = `rgb(${mean.map((value) => Math.round(255 * value)).join(" ")})`;
  const blobs = await covered(bitmap, { side: resize * 2, share: size / resize, grid, grey });
  const started = performance.now();
  const { scores, batches } = await classifyMany(blobs, info.model.classes);
  const seconds = (performance.now() - started) / 1000;
  const [whole, ...parts] = scores.map((one) => one.get(index));
  return { grid, whole, index, batches, seconds, drops: parts.map((score) => whole - score) };
}

/** Draw the drops over the picture, the largest opaque; cells that do not matter stay clear. */
export function draw(canvas, { grid, drops }) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--heat");
  const most = Math.max(...drops, 1e-6);
  const small = new OffscreenCanvas(grid, grid);
  const cells = small.getContext("2d");
  drops.forEach((drop, i) => {
    cells.fillStyle = `rgb(${colour} / ${(0.8 * Math.max(drop, 0)) / most})`;
    cells.fillRect(i % grid, Math.floor(i / grid), 1, 1);
  });
  const to = canvas.getContext("2d");
  to.clearRect(0, 0, canvas.width, canvas.height);
  to.imageSmoothingEnabled = true;
  to.imageSmoothingQuality = "high";
  to.drawImage(small, 0, 0, canvas.width, canvas.height);
}
