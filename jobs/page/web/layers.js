// The masks on the frame that is shown: previews of clicks, tracked masks, and those of a run.

import { hasHandle } from "./clicks.js";
import { colourOf, tinted } from "./masks.js";

const AT_ONCE = 2; // previews: a browser has six connections, and clicks must not wait for one
const tints = new WeakMap(); // mask: its tinted picture

/** Runs a few requests at a time; the newest comes first, and one that was aborted never begins. */
class Turns {
  constructor() {
    this.waiting = []; // the newest last
    this.running = 0;
  }

  /** Return a promise of what request() returns. */
  take(request, signal) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ request, signal, resolve, reject });
      this.begin();
    });
  }

  begin() {
    while (this.running < AT_ONCE && this.waiting.length) {
      const { request, signal, resolve, reject } = this.waiting.pop();
      if (signal.aborted) {
        reject(signal.reason);
        continue;
      }
      this.running++;
      request().then(resolve, reject).finally(() => {
        this.running--;
        this.begin();
      });
    }
  }
}

export class Layers {
  /** send: the requests of api.js; page: its state, clicks, tracks, view; on.changed(), on.failed(error) */
  constructor(send, page, on) {
    Object.assign(this, { send, page, on });
    this.shown = true;
    this.requests = new Map(); // object: the AbortController of its last request
    this.turns = new Turns();
    this.clear();
  }

  /** Forget the masks of the frame. */
  clear() {
    for (const abort of this.requests.values()) abort.abort();
    this.requests.clear();
    this.preview = new Map(); // object: its mask
    this.run = []; // masks of the run
  }

  /** The mask of an object; from: preview, tracked or run. */
  of(object) {
    const { state, tracks } = this.page;
    const find = (masks) => masks.find((one) => one.object_id === object);
    const preview = this.preview.get(object);
    if (preview) return { from: "preview", mask: preview };
    const tracked = find(tracks.at(state.frame));
    if (tracked) return { from: "tracked", mask: tracked };
    const run = find(this.run);
    return run && { from: "run", mask: run };
  }

  draw() {
    const { state, clicks, tracks, view } = this.page;
    const more = [...this.run, ...tracks.at(state.frame)].map((one) => one.object_id);
    view.layers = [];
    for (const object of this.shown ? new Set([...clicks.objects, ...more]) : []) {
      const mask = this.of(object)?.mask;
      if (!mask) continue;
      if (!tints.has(mask)) tints.set(mask, tinted(mask, colourOf(object)));
      view.layers.push(tints.get(mask));
    }
    view.draw();
  }

  /** Load the masks of objects by their clicks on the frame. */
  loadPreviews(objects) {
    return Promise.all(objects.map((object) => this.loadPreview(object)));
  }

  async loadPreview(object) {
    const { state, clicks } = this.page;
    if (!state.info) return undefined;
    const { video, frame, info: { version } } = state;
    const here = () => state.video === video && state.frame === frame;
    this.requests.get(object)?.abort();
    const rows = clicks.at(frame, object);
    if (!rows.length) {
      this.preview.delete(object);
      this.draw();
      return this.on.changed();
    }
    const abort = new AbortController();
    this.requests.set(object, abort);
    const prompt = {
      object_id: object, corrects: rows[0].role === "correct",
      clicks: rows.filter(hasHandle).map(({ x, y, x2, y2, label }) =>
        (x2 === undefined ? { x, y, label } : { x, y, x2, y2 })),
    };
    try {
      const [mask] = await this.turns.take(
        () => this.send.preview(video, frame, version, [prompt], abort.signal), abort.signal,
      );
      if (!here() || abort.signal.aborted) return undefined;
      if (mask) this.preview.set(object, mask);
      else this.preview.delete(object);
    } catch (error) {
      if (error.name !== "AbortError" && here()) this.on.failed(error);
    }
    this.draw();
    return this.on.changed();
  }

  /** Load the masks of the run on the frame. */
  async loadRun() {
    const { state } = this.page, { video, frame } = state;
    const masks = await this.send.masks(video, frame);
    if (state.video !== video || state.frame !== frame) return;
    this.run = masks;
    this.draw();
    this.on.changed();
  }
}
