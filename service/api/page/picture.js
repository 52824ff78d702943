// Files and canvases: read a picture, show the model's input, cover parts of it.

/** A picture file as an upright bitmap, or null if the browser cannot decode it (the server may support it). */
export async function read(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
}

const sizeOf = (picture) => [picture.videoWidth || picture.width, picture.videoHeight || picture.height];

/** The middle square of a picture or video: all of its short side times `share`. */
function middle(picture, share) {
  const [width, height] = sizeOf(picture);
  const side = Math.min(width, height) * share;
  return [(width - side) / 2, (height - side) / 2, side, side];
}

function onWhite(to, width, height) {
  to.fillStyle = "#fff";
  to.fillRect(0, 0, width, height);
  to.imageSmoothingQuality = "high";
}

/** Draw the model's input: the crop in the middle, on white where the picture is transparent. */
export function show(canvas, picture, share = 1) {
  const to = canvas.getContext("2d");
  onWhite(to, canvas.width, canvas.height);
  to.drawImage(picture, ...middle(picture, share), 0, 0, canvas.width, canvas.height);
}

export function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/** The middle square as a JPEG of `side` pixels: thumbnails, and pictures of the camera. */
export async function square(picture, side, quality = 0.85) {
  const canvas = new OffscreenCanvas(side, side);
  show(canvas, picture);
  return canvas.convertToBlob({ type: "image/jpeg", quality });
}

/** The whole picture, with a short side of at most `most` pixels, and the scale by which it was made smaller. */
export function whole(bitmap, most) {
  const scale = Math.min(1, most / Math.min(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const to = canvas.getContext("2d");
  onWhite(to, canvas.width, canvas.height);
  to.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { canvas, scale };
}

/** A copy of a canvas with one cell of a grid over the model's crop in one colour; no cell is covered if it is null. */
export function covered(canvas, { share, grid, colour }, cell) {
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const to = copy.getContext("2d");
  to.drawImage(canvas, 0, 0);
  if (cell === null) return copy;
  const [left, top, side] = middle(canvas, share);
  to.fillStyle = colour;
  to.fillRect(left + ((cell % grid) * side) / grid, top + (Math.floor(cell / grid) * side) / grid, side / grid, side / grid);
  return copy;
}
