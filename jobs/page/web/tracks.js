// A few seconds of tracking: begun, asked about until it is done, and what it found.

const OFTEN = 200; // milliseconds between two questions

export class Tracks {
  /** on.changed(), on.failed(error); send: the requests of api.js */
  constructor(send, on) {
    this.send = send;
    this.on = on;
    this.leave();
  }

  /** Forget the video that was shown; its run goes on until nobody has asked for a while. */
  leave() {
    this.id = null;
    this.found = new Map(); // frame: what was found of each object
    this.progress = { running: false, share: 0, text: "" };
  }

  /** Take up what was begun of a video before. */
  async enter(id) {
    this.id = id;
    await this.follow();
  }

  async start(id, here, count) {
    this.id = id;
    this.found = new Map();
    try {
      await this.send.track(id, here, count);
      this.progress = { running: true, share: 0, text: "begins…" };
      this.on.changed();
      await this.follow();
    } catch (error) {
      this.on.failed(error);
    }
  }

  cancel() {
    if (this.progress.running) this.send.cancel(this.id).catch(() => {});
  }

  async follow() {
    const id = this.id, turn = (this.turn = {});
    let run = null, count = 0;
    do {
      run = await this.send.tracked(id, count).catch(() => null);
      if (!run || this.turn !== turn || this.id !== id) return;
      count += run.frames.length;
      for (const { frame, height, width, objects } of run.frames) {
        this.found.set(frame, objects.map((one) => ({ ...one, height, width })));
      }
      this.progress = {
        running: !run.done, share: Math.min(1, run.read / run.total), text: told(run, count),
      };
      this.on.changed();
      if (!run.done) await new Promise((go) => setTimeout(go, OFTEN));
    } while (!run.done);
  }

  /** What was found on a frame: [{object_id, state, score, rle, height, width}]. */
  at(frame) {
    return this.found.get(frame) ?? [];
  }

  /** Runs [first, last, state] of an object. */
  runs(object) {
    const runs = [];
    for (const [frame, objects] of [...this.found].sort((a, b) => a[0] - b[0])) {
      const state = objects.find((one) => one.object_id === object)?.state;
      const last = runs.at(-1);
      if (!state) continue;
      if (last && last[1] === frame - 1 && last[2] === state) last[1] = frame;
      else runs.push([frame, frame, state]);
    }
    return runs;
  }
}

function told({ start, stop, done, cancelled, error, read, total }, count) {
  if (error) return `stopped: ${error}`;
  if (cancelled && done) return `cancelled after ${count} frames`;
  if (done) return `frames ${start} to ${stop - 1} tracked; Space plays them`;
  return count ? `${count} of ${stop - start} frames` : `looking back: ${Math.min(read, total)} frames`;
}
