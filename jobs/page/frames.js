// Frames of a video as pictures: the last ones are kept, the next ones fetched before they are wanted.

const KEPT = 40;

export class Frames {
  /** load(index): a promise of a Blob */
  constructor(load) {
    this.load = load;
    this.known = new Map(); // index: promise of an ImageBitmap, the latest last
  }

  get(index) {
    let found = this.known.get(index);
    if (!found) {
      found = this.load(index).then((blob) => createImageBitmap(blob));
      found.catch(() => this.known.delete(index));
    }
    this.known.delete(index);
    this.known.set(index, found);
    while (this.known.size > KEPT) {
      const [oldest, picture] = this.known.entries().next().value;
      this.known.delete(oldest);
      picture.then((bitmap) => bitmap.close(), () => {});
    }
    return found;
  }

  /** Fetch a few frames, one after another, until others are wanted. */
  async ahead(indices) {
    const turn = (this.turn = {});
    for (const index of indices) {
      if (this.turn !== turn) return;
      if (!this.known.has(index)) await this.get(index).catch(() => {});
    }
  }
}
