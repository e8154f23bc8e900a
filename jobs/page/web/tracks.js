// The track of a few seconds: starts it, polls its progress, and keeps its masks.

const POLL = 200; // milliseconds between two requests

export class Tracks {
  /** on.changed(), on.failed(error); send: the requests of api.js */
  constructor(send, on) {
    this.send = send;
    this.on = on;
    this.clear();
  }

  /** Forget the video; the server ends its track when it is no longer polled. */
  clear() {
    this.id = null;
    this.found = new Map(); // frame: masks of the objects
    this.progress = { running: false, share: 0, text: "" };
  }

  /** Show the track of a video that was started before, if there is one. */
  async resume(id) {
    this.id = id;
    await this.poll();
  }

  async start(id, here, count) {
    this.id = id;
    this.found = new Map();
    try {
      await this.send.track(id, here, count);
      this.progress = { running: true, share: 0, text: "starting…" };
      this.on.changed();
      await this.poll();
    } catch (error) {
      this.on.failed(error);
    }
  }

  cancel() {
    if (this.progress.running) this.send.cancel(this.id).catch(() => {});
  }

  async poll() {
    const id = this.id, turn = (this.turn = {});
    let track = null, count = 0;
    do {
      track = await this.send.tracked(id, count).catch(() => null);
      if (!track || this.turn !== turn || this.id !== id) return;
      count += track.frames.length;
      for (const { frame, height, width, objects } of track.frames) {
        this.found.set(frame, objects.map((one) => ({ ...one, height, width })));
      }
      this.progress = {
        running: !track.done, share: Math.min(1, track.read / track.total),
        text: statusOf(track, count),
      };
      this.on.changed();
      if (!track.done) await new Promise((go) => setTimeout(go, POLL));
    } while (!track.done);
  }

  /** The masks on a frame: [{object_id, state, score, rle, height, width}]. */
  at(frame) {
    return this.found.get(frame) ?? [];
  }

  /** Stretches [first, last, state] of frames with equal states of an object. */
  stretches(object) {
    const stretches = [];
    for (const [frame, objects] of [...this.found].sort((a, b) => a[0] - b[0])) {
      const state = objects.find((one) => one.object_id === object)?.state;
      const last = stretches.at(-1);
      if (!state) continue;
      if (last && last[1] === frame - 1 && last[2] === state) last[1] = frame;
      else stretches.push([frame, frame, state]);
    }
    return stretches;
  }
}

/** The line below the progress bar. */
function statusOf({ start, stop, done, cancelled, error, read, total }, count) {
  if (error) return `stopped: ${error}`;
  if (cancelled && done) return `cancelled after ${count} frames`;
  if (done) return `frames ${start} to ${stop - 1} are tracked; press Space to play them`;
  if (count) return `${count} of ${stop - start} frames`;
  return `reading earlier frames: ${Math.min(read, total)}`;
}
