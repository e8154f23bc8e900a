// The frames of a video as pictures, with a cache and prefetching.

const KEPT = 40;

export class Frames {
  /** load(index): returns a promise of a Blob */
  constructor(load) {
    this.load = load;
    this.known = new Map(); // index: promise of an ImageBitmap, the most recent last
    this.wanted = null; // index of the frame to show
    this.expected = new Set(); // indices of the frames that are prefetched
    this.queue = Promise.resolve();
    this.shown = null; // the picture on the screen, which must not be closed
  }

  /** Load the frame to show. A frame that still waits in the queue is dropped if another is wanted. */
  get(index) {
    this.wanted = index;
    this.expected = new Set();
    return this.cached(index);
  }

  /** Load a few frames, one after another, until others are wanted. */
  async prefetch(indices) {
    const expected = (this.expected = new Set(indices));
    for (const index of indices) {
      if (this.expected !== expected) return;
      await this.cached(index).catch(() => {});
    }
  }

  cached(index) {
    const found = this.known.get(index) ?? this.enqueue(index);
    this.known.delete(index);
    this.known.set(index, found);
    while (this.known.size > KEPT) {
      const [oldest, picture] = this.known.entries().next().value;
      this.known.delete(oldest);
      picture.then((bitmap) => bitmap !== this.shown && bitmap.close(), () => {});
    }
    return found;
  }

  /** Load one frame at a time, so that saves and previews do not wait behind skipped frames. */
  enqueue(index) {
    const found = this.queue.then(async () => {
      if (index !== this.wanted && !this.expected.has(index)) throw new Error("no longer wanted");
      return createImageBitmap(await this.load(index));
    });
    this.queue = found.catch(() => { this.known.delete(index); });
    return found;
  }
}
