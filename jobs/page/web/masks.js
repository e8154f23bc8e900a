// Decodes masks from COCO's packed run lengths, and draws them as tinted pictures with an outline.

export const COLOURS = [
  [0, 158, 255], [255, 94, 58], [46, 204, 113], [255, 200, 0], [171, 71, 255], [0, 200, 200],
];

export const colourOf = (object) => COLOURS[(object - 1) % COLOURS.length];
export const css = (rgb, alpha = 1) => `rgb(${rgb.join(" ")} / ${alpha})`;

/** Decode packed run lengths of 0, 1, 0, ... in column-major order, as pycocotools packs them. */
export function runLengths(text) {
  const runs = [];
  let value = 0, shift = 0;
  for (const character of text) {
    const bits = character.charCodeAt(0) - 48;
    value |= (bits & 31) << shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = shift = 0;
  }
  return runs;
}

/** Decode a mask to a Uint8Array of height x width, row by row: 1 on the object, else 0. */
export function decode(text, height, width) {
  const mask = new Uint8Array(height * width);
  let at = 0, inside = 0;
  for (const run of runLengths(text)) {
    if (inside) {
      for (let i = at; i < at + run; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    }
    at += run;
    inside ^= 1;
  }
  return mask;
}

/** Draw a mask on a canvas of its size: its inside tinted, its outline opaque. */
export function tinted({ rle, height, width }, colour, fill = 0.38) {
  const mask = decode(rle, height, width);
  const picture = new ImageData(width, height);
  const thick = Math.max(1, Math.round(Math.max(width, height) / 700));
  const pixels = new Uint32Array(picture.data.buffer); // little-endian: ABGR
  const ink = (alpha) =>
    ((Math.round(alpha * 255) << 24) | (colour[2] << 16) | (colour[1] << 8) | colour[0]) >>> 0;
  const inner = ink(fill), outer = ink(1);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const edge =
        (x >= thick && !mask[i - thick]) || (x + thick < width && !mask[i + thick]) ||
        (y >= thick && !mask[i - thick * width]) ||
        (y + thick < height && !mask[i + thick * width]);
      pixels[i] = edge ? outer : inner;
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}
