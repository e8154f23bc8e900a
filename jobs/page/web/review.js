// The review of a run of jobs.mask: steps through its doubtful spans.

import { $, counted, showSpans } from "./panels.js";

export class Review {
  /** page: its state, clicks, open, choose, render, say */
  constructor(page) {
    this.page = page;
    this.chosen = -1; // index in `spans`
  }

  /** The spans of all videos, those first where a click gains most, as in review.csv. */
  get spans() {
    const found = this.page.state.project.videos.flatMap((video) => video.spans ?? []);
    return found.sort((a, b) => b.severity - a.severity);
  }

  async open(place) {
    const span = this.spans[place];
    this.chosen = place;
    await this.page.open(span.video_id, span.click_frame);
    this.page.choose(span.object_id);
  }

  /** Open the next (step 1) or previous (step -1) span without an answer. */
  next(step) {
    const all = this.spans, from = this.chosen < 0 && step < 0 ? 0 : this.chosen;
    for (let i = 1; i <= all.length; i++) {
      const place = (from + step * i + all.length * 2) % all.length;
      if (!all[place].answer) return this.open(place);
    }
    this.page.say(all.length ? "All spans are reviewed." : "This run has no doubtful spans.");
    return this.page.render();
  }

  /** Accept the masks of the chosen span. */
  async accept() {
    const span = this.spans[this.chosen];
    if (!span || span.video_id !== this.page.state.video) {
      return this.page.say("Choose a span first: press ].");
    }
    if (this.page.clicks.id === null) return this.page.say("The video is not open yet.");
    if (!span.answer) {
      if (!(await this.page.clicks.accept(span))) return undefined;
      await this.page.changed([]);
    }
    return this.next(1);
  }

  show() {
    const { state, clicks } = this.page;
    showSpans(this.spans, this.chosen, (span) => {
      const name = span.video_id === state.video && clicks.nameOf(span.object_id);
      return `${span.video_id} · ${name || `object ${span.object_id}`}`;
    }, (place) => this.open(place));
    const changed = state.project.videos.filter((video) => video.status === "changed").length;
    $("redo-count").textContent = `jobs.mask would mask ${counted(changed, "video")} again`;
  }
}
