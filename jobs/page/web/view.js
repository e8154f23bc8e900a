// The frame: zooms and pans, draws masks and clicks, and finds the pixel under the pointer.
//
// Positions are in pixels of the frame. Pixel (i, j) covers [i, i + 1) x [j, j + 1).

import { colourOf, css } from "./masks.js";

const NEAR = 9; // distance in CSS pixels within which the pointer grabs a point
const DRAG = 5; // distance in CSS pixels from which a movement is a drag
const MOST = 64; // largest zoom, in CSS pixels per pixel of the frame

export class View {
  /**
   * on.click(x, y, negative, frame), on.box({x, y, x2, y2}, frame), on.select(row), on.drag(row, change),
   * on.hover(x, y or null), on.zoom(scale)
   */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    this.picture = null; // ImageBitmap of the frame
    this.frame = null; // number of the frame
    this.size = [1, 1]; // width, height of the frame
    this.layers = []; // tinted masks
    this.marks = []; // rows with a position on this frame
    this.selected = null; // number of the selected row
    this.active = null; // the chosen object
    this.scale = 1; // CSS pixels per pixel of the frame
    this.left = this.top = 0; // position of the frame's corner in CSS pixels
    this.fitted = true;
    this.pointer = null;
    this.gesture = null;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.drop());
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  // Geometry

  /** The pixel [x, y] at a position in the window; it may be outside of the frame. */
  pixelAt(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const half = 0.5 / devicePixelRatio; // the middle of a physical pixel
    return [
      Math.floor((clientX + half - box.left - this.left) / this.scale),
      Math.floor((clientY + half - box.top - this.top) / this.scale),
    ];
  }

  /** The position in the window of the middle of a pixel. */
  clientOf(x, y) {
    const box = this.canvas.getBoundingClientRect();
    const middle = (at, corner) => corner + (at + 0.5) * this.scale;
    return [box.left + middle(x, this.left), box.top + middle(y, this.top)];
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.size[0] && y < this.size[1];
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    if (this.fitted) this.fit();
    else this.place(this.scale, this.left, this.top);
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const margin = 12;
    const [w, h] = this.size;
    const scale = Math.min(Math.max(1, width - 2 * margin) / w, Math.max(1, height - 2 * margin) / h);
    this.place(Math.min(scale, MOST), (width - w * scale) / 2, (height - h * scale) / 2);
    this.fitted = true;
  }

  place(scale, left, top) {
    // Aligned to physical pixels, so that edges are sharp and clicks hit the pixel that is seen.
    const snap = (at) => Math.round(at * devicePixelRatio) / devicePixelRatio;
    [this.scale, this.left, this.top] = [scale, snap(left), snap(top)];
    this.fitted = false;
    this.on.zoom(scale);
    this.draw();
  }

  /** Zoom about a position in the window, or about the middle. */
  zoom(factor, clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const x = (clientX ?? box.left + box.width / 2) - box.left;
    const y = (clientY ?? box.top + box.height / 2) - box.top;
    const least = Math.min(1, box.width / this.size[0], box.height / this.size[1]) / 2;
    const scale = Math.min(MOST, Math.max(least, this.scale * factor));
    const ratio = scale / this.scale;
    this.place(scale, x - (x - this.left) * ratio, y - (y - this.top) * ratio);
  }

  zoomTo(scale) {
    this.zoom(scale / this.scale);
  }

  // Pointer

  wheel(event) {
    event.preventDefault();
    if (event.shiftKey) this.place(this.scale, this.left - event.deltaX - event.deltaY, this.top);
    else this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event.clientX, event.clientY);
  }

  down(event) {
    this.canvas.focus();
    if (!this.picture) return;
    this.canvas.setPointerCapture(event.pointerId);
    const start = [event.clientX, event.clientY];
    if (event.button === 1 || (event.button === 0 && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      this.gesture = { kind: "pan", start, from: [this.left, this.top] };
      return;
    }
    const negative = event.button === 2 || event.altKey || event.shiftKey;
    const handle = negative ? null : this.handleAt(...start);
    const pixel = this.pixelAt(...start);
    const { frame } = this, kind = handle ? "handle" : "click";
    this.gesture = { kind, start, pixel, frame, negative, handle, far: false };
    if (handle) {
      this.selected = handle.mark.row;
      this.on.select(handle.mark);
    }
    this.draw();
  }

  moved(event) {
    this.hover([event.clientX, event.clientY]);
    const gesture = this.gesture;
    if (!gesture) return;
    const [dx, dy] = [event.clientX - gesture.start[0], event.clientY - gesture.start[1]];
    gesture.far ||= Math.hypot(dx, dy) >= DRAG;
    if (gesture.kind === "pan") {
      this.place(this.scale, gesture.from[0] + dx, gesture.from[1] + dy);
    } else {
      gesture.to = this.clamped(this.pixelAt(event.clientX, event.clientY));
      this.draw();
    }
  }

  up() {
    const gesture = this.gesture;
    this.gesture = null;
    if (!gesture) return;
    if (gesture.kind === "handle") {
      if (gesture.far) this.on.drag(gesture.handle.mark, this.change(gesture));
    } else if (gesture.kind === "click") {
      if (gesture.far && !gesture.negative) {
        const box = this.box(gesture);
        if (box.x2 - box.x > 1 && box.y2 - box.y > 1) this.on.box(box, gesture.frame);
      } else if (this.inside(gesture.pixel)) {
        this.on.click(...gesture.pixel, gesture.negative, gesture.frame);
      }
    }
    this.draw();
  }

  drop() {
    this.gesture = null;
    this.draw();
  }

  hover(place) {
    this.pointer = place && this.pixelAt(...place);
    const inside = this.pointer && this.inside(this.pointer) && this.picture;
    this.on.hover(inside ? this.pointer : null);
    if (!this.gesture) this.canvas.style.cursor = place && this.handleAt(...place) ? "grab" : "crosshair";
    this.draw();
  }

  clamped([x, y]) {
    return [Math.min(Math.max(x, 0), this.size[0] - 1), Math.min(Math.max(y, 0), this.size[1] - 1)];
  }

  /** The box that a drag spans, in whole pixels. */
  box({ pixel, to }) {
    const from = this.clamped(pixel);
    const [x, y] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
    return { x, y, x2: Math.max(from[0], to[0]) + 1, y2: Math.max(from[1], to[1]) + 1 };
  }

  /** The point, or the corner of a box, of the chosen object under the pointer. */
  handleAt(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [clientX - box.left, clientY - box.top];
    let found = null, least = NEAR;
    for (const mark of this.marks) {
      // The clicks of other objects must not be in the way of new ones.
      if (mark.object_id !== this.active || mark.pending) continue;
      for (const [corner, at] of this.handles(mark)) {
        const far = Math.hypot(this.left + at[0] * this.scale - x, this.top + at[1] * this.scale - y);
        if (far <= least) [found, least] = [{ mark, corner }, far];
      }
    }
    return found;
  }

  handles(mark) {
    if (mark.x2 === undefined) return [["", [mark.x + 0.5, mark.y + 0.5]]];
    return [["x y", [mark.x, mark.y]], ["x2 y", [mark.x2, mark.y]],
      ["x y2", [mark.x, mark.y2]], ["x2 y2", [mark.x2, mark.y2]]];
  }

  /** The columns that change when a handle is dragged. */
  change({ handle: { mark, corner }, to }) {
    if (!corner) return { x: to[0], y: to[1] };
    const [a, b] = corner.split(" ");
    const box = { x: mark.x, y: mark.y, x2: mark.x2, y2: mark.y2 };
    box[a] = a === "x2" ? Math.max(to[0] + 1, box.x + 1) : Math.min(to[0], box.x2 - 1);
    box[b] = b === "y2" ? Math.max(to[1] + 1, box.y + 1) : Math.min(to[1], box.y2 - 1);
    return box;
  }

  // Drawing

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const ratio = devicePixelRatio, { clientWidth, clientHeight } = this.canvas;
    // Another screen may have another ratio but the same size in CSS pixels, which is observed.
    if (this.canvas.width !== Math.round(clientWidth * ratio)
      || this.canvas.height !== Math.round(clientHeight * ratio)) this.resize();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.picture) return;
    const zoom = this.scale * ratio;
    context.setTransform(zoom, 0, 0, zoom, this.left * ratio, this.top * ratio);
    context.imageSmoothingEnabled = zoom < 2;
    context.imageSmoothingQuality = "high";
    const [w, h] = this.size;
    for (const layer of [this.picture, ...this.layers]) context.drawImage(layer, 0, 0, w, h);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const dragged = this.gesture?.far ? this.gesture : null;
    for (const mark of this.marks) {
      const moved = dragged?.handle?.mark === mark ? this.change(dragged) : {};
      this.paintMark(context, { ...mark, ...moved });
    }
    if (dragged?.kind === "click" && !dragged.negative && dragged.to) {
      this.paintMark(context, { ...this.box(dragged), object_id: this.active ?? 1, pending: true });
    }
    if (this.scale >= 6 && this.pointer && this.inside(this.pointer)) this.paintPixel(context);
  }

  paintPixel(context) {
    const [x, y] = this.pointer;
    context.strokeStyle = "#fff";
    context.lineWidth = 1;
    context.strokeRect(this.left + x * this.scale, this.top + y * this.scale, this.scale, this.scale);
  }

  paintMark(context, mark) {
    const colour = css(colourOf(mark.object_id));
    const dim = this.active !== null && mark.object_id !== this.active;
    const at = (x, y) => [this.left + x * this.scale, this.top + y * this.scale];
    context.globalAlpha = dim ? 0.65 : 1;
    context.setLineDash(mark.pending ? [4, 3] : []);
    const selected = mark.row !== undefined && mark.row === this.selected;
    if (mark.x2 !== undefined) this.paintBox(context, mark, at, colour, selected);
    else this.paintPoint(context, mark, at(mark.x + 0.5, mark.y + 0.5), colour, selected);
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  paintBox(context, mark, at, colour, selected) {
    const [x, y] = at(mark.x, mark.y), [x2, y2] = at(mark.x2, mark.y2);
    for (const [width, ink] of [[4, "rgb(0 0 0 / 0.55)"], [2, colour]]) {
      context.lineWidth = width;
      context.strokeStyle = ink;
      context.strokeRect(x, y, x2 - x, y2 - y);
    }
    context.fillStyle = selected ? "#fff" : colour;
    for (const [a, b] of [[x, y], [x2, y], [x, y2], [x2, y2]]) context.fillRect(a - 4, b - 4, 8, 8);
  }

  paintPoint(context, mark, [x, y], colour, selected) {
    const positive = mark.label === 1;
    context.beginPath();
    context.arc(x, y, 6.5, 0, 7);
    context.fillStyle = positive ? colour : "#1b1d21";
    if (!mark.pending) context.fill();
    context.lineWidth = selected ? 3.5 : 2;
    context.strokeStyle = positive ? "#fff" : colour;
    context.stroke();
    context.beginPath();
    context.arc(x, y, selected ? 10 : 8, 0, 7);
    context.lineWidth = selected ? 2 : 1;
    context.strokeStyle = selected ? "#fff" : "rgb(0 0 0 / 0.7)";
    context.stroke();
    context.beginPath(); // a plus or a minus, as not everyone sees the colours
    context.moveTo(x - 3, y);
    context.lineTo(x + 3, y);
    if (positive) {
      context.moveTo(x, y - 3);
      context.lineTo(x, y + 3);
    }
    context.lineWidth = 1.8;
    context.strokeStyle = "#fff";
    context.stroke();
  }
}
