// The timeline: a lane for each object, with its states and prompts, and the current frame.

import { colourOf, css } from "./masks.js";

const LANE = 12, TOP = 20, EDGE = 10; // CSS pixels
const LANES = 5; // that are visible; the height is fixed, or the frame would move under the pointer
export const STATES = { uncertain: "#e8a33d", lost: "#e5484d", absent: "#5b616b" };

export class Timeline {
  /** on.seek(frame) */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.data = { count: 0, frame: 0, lanes: [], spans: [], active: null };
    new ResizeObserver(() => this.draw()).observe(canvas);
    const seek = (event) => on.seek(this.frameAt(event.clientX));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      seek(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && seek(event));
  }

  /**
   * count: number of frames; frame: the current one; active: the chosen object;
   * lanes: [{object, stretches: [[first, last, state]], marks: [{frame, kind}]}];
   * spans: [{first_frame, last_frame, answer, reason}].
   */
  show(data) {
    this.data = data;
    this.draw();
  }

  get width() {
    return this.canvas.clientWidth - 2 * EDGE;
  }

  x(frame) {
    return EDGE + (frame / Math.max(1, this.data.count)) * this.width;
  }

  frameAt(clientX) {
    const share = (clientX - this.canvas.getBoundingClientRect().left - EDGE) / this.width;
    return Math.min(this.data.count - 1, Math.max(0, Math.floor(share * this.data.count)));
  }

  draw() {
    const ratio = devicePixelRatio, { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!this.data.count) return;
    this.ruler(context);
    this.data.spans.forEach((span) => this.span(context, span));
    const first = Math.max(0, this.data.lanes.findIndex((l) => l.object === this.data.active) - LANES + 1);
    this.data.lanes.slice(first, first + LANES).forEach((lane, place) => this.lane(context, lane, place));
    this.playhead(context, height);
  }

  ruler(context) {
    const { count } = this.data;
    const wanted = (count * 70) / this.width; // frames between two labels
    const ten = 10 ** Math.floor(Math.log10(Math.max(1, wanted)));
    const step = Math.ceil([1, 2, 5, 10].find((factor) => factor * ten >= wanted) * ten);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = "#9aa3ad";
    for (let frame = 0; frame < count; frame += step) {
      context.fillRect(this.x(frame), TOP - 6, 1, 4);
      context.fillText(frame.toLocaleString("en"), this.x(frame) + 3, TOP - 9);
    }
  }

  span(context, { first_frame: first, last_frame: last, answer, reason }) {
    context.fillStyle = answer ? "#3fb27f" : STATES[reason];
    context.fillRect(this.x(first), TOP - 3, Math.max(2, this.x(last + 1) - this.x(first)), 2);
  }

  lane(context, { object, stretches, marks }, place) {
    const y = TOP + place * LANE, colour = colourOf(object), active = object === this.data.active;
    context.fillStyle = active ? "#3a404a" : "#2a2e35";
    context.fillRect(EDGE, y + 2, this.width, LANE - 4);
    for (const [first, last, state] of stretches) {
      const x = this.x(first), width = Math.max(1, this.x(last + 1) - x);
      this.stretch(context, state, x, y + 2, width, colour);
    }
    for (const mark of marks) this.mark(context, mark, y + LANE / 2, colour);
  }

  /** States differ in shape, too, because an object may have the colour of a state. */
  stretch(context, state, x, y, width, colour) {
    const height = LANE - 4;
    context.fillStyle = STATES[state] ?? css(colour, state === "requested" ? 0.28 : 0.85);
    context.fillRect(x, y, width, height);
    if (state === "lost") {
      context.fillStyle = "#1c1f24";
      context.fillRect(x, y + 2, width, height - 4);
    } else if (state === "uncertain") {
      context.fillStyle = "#1c1f24";
      for (let at = x + 2; at < x + width - 1; at += 4) context.fillRect(at, y, 1.5, height);
    }
  }

  mark(context, { frame, kind }, y, colour) {
    const x = (this.x(frame) + this.x(frame + 1)) / 2;
    context.beginPath();
    if (kind === "absent" || kind === "end") {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.moveTo(x - 3, y - 3);
      context.lineTo(kind === "end" ? x - 3 : x + 3, y + 3);
      if (kind === "absent") {
        context.moveTo(x + 3, y - 3);
        context.lineTo(x - 3, y + 3);
      }
      context.stroke();
      return;
    }
    context.arc(x, y, 4, 0, 7);
    context.fillStyle = css(colour);
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.fill();
    context.stroke();
  }

  playhead(context, height) {
    const { frame } = this.data;
    const x = this.x(frame), width = Math.max(2, this.x(frame + 1) - x);
    context.fillStyle = "rgb(255 255 255 / 0.22)";
    context.fillRect(x, TOP - 6, width, height - TOP + 6);
    context.fillStyle = "#fff";
    context.fillRect(x + width / 2 - 1, TOP - 6, 2, height - TOP + 6);
  }
}
