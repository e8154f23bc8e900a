// Frames of a video as pictures: the last ones are kept, the next ones fetched before they are wanted.

const KEPT = 40;

export class Frames {
  /** load(index): a promise of a Blob */
  constructor(load) {
    this.load = load;
    this.known = new Map(); // index: promise of an ImageBitmap, the latest last
    this.wanted = null; // that is to be shown
    this.expected = new Set(); // that may be wanted next
    this.queue = Promise.resolve();
    this.shown = null; // the picture that must not be closed
  }

  /** What is asked for while another one is on its way is forgotten once yet another is wanted. */
  get(index) {
    this.wanted = index;
    this.expected = new Set();
    return this.bring(index);
  }

  /** Fetch a few frames, one after another, until others are wanted. */
  async ahead(indices) {
    const mine = (this.expected = new Set(indices));
    for (const index of indices) {
      if (this.expected !== mine) return;
      await this.bring(index).catch(() => {});
    }
  }

  bring(index) {
    const found = this.known.get(index) ?? this.fetch(index);
    this.known.delete(index);
    this.known.set(index, found);
    while (this.known.size > KEPT) {
      const [oldest, picture] = this.known.entries().next().value;
      this.known.delete(oldest);
      picture.then((bitmap) => bitmap !== this.shown && bitmap.close(), () => {});
    }
    return found;
  }

  /** One at a time: saves and previews must not wait behind frames that were scrubbed past. */
  fetch(index) {
    const found = this.queue.then(async () => {
      if (index !== this.wanted && !this.expected.has(index)) throw new Error("not wanted any more");
      return createImageBitmap(await this.load(index));
    });
    this.queue = found.catch(() => { this.known.delete(index); });
    return found;
  }
}
