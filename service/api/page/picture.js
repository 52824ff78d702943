// Files and canvases: read a picture, show the model's input, cover parts of it.

/** A picture file as an upright bitmap, or null if the browser cannot decode it (the server may support it). */
export async function read(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
}

/** The middle square of a picture: all of its short side times `share`. */
function middle(bitmap, share) {
  const side = Math.min(bitmap.width, bitmap.height) * share;
  return [(bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side];
}

/** Draw the model's input: the crop in the middle, on white where the picture is transparent. */
export function show(canvas, bitmap, share = 1) {
  const to = canvas.getContext("2d");
  to.fillStyle = "#fff";
  to.fillRect(0, 0, canvas.width, canvas.height);
  to.imageSmoothingQuality = "high";
  to.drawImage(bitmap, ...middle(bitmap, share), 0, 0, canvas.width, canvas.height);
}

export function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/** The picture as a square of `side` pixels, and a copy for every cell of a grid over the crop, with that cell grey. */
export async function covered(bitmap, { side, share, grid, grey }) {
  const canvas = new OffscreenCanvas(side, side);
  const to = canvas.getContext("2d");
  const [start, cell] = [(side * (1 - share)) / 2, (side * share) / grid];
  const blobs = [];
  for (let i = -1; i < grid * grid; i++) {
    show(canvas, bitmap);
    to.fillStyle = grey;
    if (i >= 0) to.fillRect(start + (i % grid) * cell, start + Math.floor(i / grid) * cell, cell, cell);
    blobs.push(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 }));
  }
  return blobs;
}

/** A small JPEG of the middle square, for the gallery. */
export async function thumbnail(bitmap, side = 144) {
  const canvas = new OffscreenCanvas(side, side);
  show(canvas, bitmap);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
}
