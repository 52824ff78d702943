// The heat map: how much the score falls when a part of the picture is covered.

import { classifyMany } from "./api.js";
import { covered, whole } from "./picture.js";

export const WEAK = 0.05; // a smaller fall of the score is drawn faintly

/** The number of cells per side: the largest divisor of the patch grid from 4 on, else 6. */
export function gridFor({ model }) {
  const { image_size: size, patch_size: patch, stride } = model.config;
  const tokens = Math.floor((size[0] - patch) / stride) + 1;
  return [7, 6, 5, 4].find((n) => tokens % n === 0) ?? 6;
}

/** -> {grid, drops, copy, batches, seconds}: per cell how far the score of class `index` falls; `copy` is its score
 * for the picture as it is copied, with no cell covered. `progress` is called with the share that is done; the work
 * stops with null when it returns false.
 *
 * The server's crop and size are left to the server: a copy has the size of the picture, without loss, so its score is
 * that of the picture. Only copies of large pictures are made smaller, and compressed.
 */
export async function look(bitmap, info, index, progress) {
  const { resize, size, mean } = info.preprocess;
  const grid = gridFor(info);
  const started = performance.now();
  const { canvas, scale } = whole(bitmap, 3 * resize);
  const kind = scale === 1 ? { type: "image/png" } : { type: "image/jpeg", quality: 0.95 };
  const cover = { share: size / resize, grid, colour: `rgb(${mean.map((value) => Math.round(255 * value)).join(" ")})` };
  const cells = [null, ...Array.from({ length: grid * grid }, (_, i) => i)];
  const [scores, batches, step] = [[], [], Math.min(grid, info.limits.max_images, info.limits.queue_images)];
  for (let i = 0; i < cells.length; i += step) {
    if (!progress(i / cells.length)) return null;
    const copies = cells.slice(i, i + step).map((cell) => covered(canvas, cover, cell).convertToBlob(kind));
    const found = await classifyMany(await Promise.all(copies), info.model.classes);
    scores.push(...found.predictions.map((list) => list.find((one) => one.index === index).score));
    batches.push(...found.batches);
  }
  const [copy, ...rest] = scores;
  const seconds = (performance.now() - started) / 1000;
  return progress(1) ? { grid, copy, batches, seconds, drops: rest.map((score) => copy - score) } : null;
}

/** Draw the drops over the picture, the largest opaque unless it is weak; cells that do not matter stay clear. */
export function draw(canvas, { grid, drops }) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--heat");
  const most = Math.max(...drops, WEAK);
  const small = new OffscreenCanvas(grid, grid);
  const cells = small.getContext("2d");
  drops.forEach((drop, i) => {
    cells.fillStyle = `rgb(${colour} / ${Math.max(drop, 0) / most})`;
    cells.fillRect(i % grid, Math.floor(i / grid), 1, 1);
  });
  const to = canvas.getContext("2d");
  to.clearRect(0, 0, canvas.width, canvas.height);
  to.imageSmoothingEnabled = true;
  to.imageSmoothingQuality = "high";
  to.drawImage(small, 0, 0, canvas.width, canvas.height);
}
