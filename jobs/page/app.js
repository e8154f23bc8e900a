// The page: what is shown, and what happens on clicks and keys.

import { api } from "./api.js";
import { Clicks, isPlaced } from "./clicks.js";
import { Frames } from "./frames.js";
import { KEYS, listen } from "./keys.js";
import { colourOf, tinted } from "./masks.js";
import { $, counted, showKeys, showObjects, showSpans, showVideos } from "./panels.js";
import { Timeline } from "./timeline.js";
import { Tracks } from "./tracks.js";
import { View } from "./view.js";

const state = {
  project: null, video: null, info: null, frames: null, times: [], complete: false,
  frame: 0, object: 1, selected: null, masks: true, playing: false, span: -1, filter: "",
  preview: new Map(), // of the frame that is shown: object to its mask
  run: [], // masks of the run on that frame
};

const view = new View($("view"), {
  click: (x, y, negative) => click({ x, y, label: negative ? 0 : 1 }),
  box: (box) => click(box),
  select: (row) => { state.selected = row; choose(row.object_id); },
  drag: (row, columns) => clicks.change(row, columns).then((done) => done && preview([row.object_id])),
  hover: (pixel) => { $("where").textContent = pixel ? `x ${pixel[0]}  y ${pixel[1]}` : ""; },
  zoom: (scale) => { $("zoom").textContent = `${Math.round(scale * 100)} %`; },
});
const timeline = new Timeline($("timeline"), { seek: (frame) => show(frame) });
const clicks = new Clicks(api, {
  changed: () => render(),
  saving: () => status("Saving…", "saving"),
  saved: () => status("Saved", "ok"),
  failed: (error) => fail(error),
});
const tracks = new Tracks(api, { changed: () => { layers(); render(); }, failed: (error) => say(error.message) });

// Videos and frames

async function start() {
  showKeys(KEYS);
  state.project = await api.project();
  $("review-panel").hidden = !state.project.review;
  $("title").title = state.project.manifest;
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = state.project.videos.find((video) => video.id === wanted) ?? state.project.videos[0];
  await open(first.id);
}

async function open(id, frame) {
  if (state.video === id && state.info) return frame === undefined ? undefined : show(frame);
  await clicks.queue;
  Object.assign(state, { video: id, info: null, selected: null, times: [], complete: false });
  state.preview.clear();
  tracks.leave();
  pause();
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  render();
  try {
    const info = await api.video(id);
    if (state.video !== id) return;
    state.info = info;
    state.frames = new Frames((index) => api.frame(id, index, info.version));
    view.size = [info.width, info.height];
    clicks.take(id, info.rows);
    state.object = clicks.objects[0] ?? 1;
    $("empty").hidden = true;
    view.fit();
    count(id);
    tracks.enter(id);
    await show(frame ?? clicks.prompted[0] ?? 0);
  } catch (error) {
    if (state.video !== id) return;
    view.picture = null;
    view.draw();
    $("empty").textContent = error.message;
    $("empty").hidden = false;
  }
}

/** Learn when frames are shown, as the server finds out. */
async function count(id) {
  while (state.video === id && !state.complete) {
    const { times, complete, notes } = await api.moments(id, state.times.length).catch(() => ({}));
    if (state.video !== id || !times) return;
    state.times.push(...times);
    state.complete = complete;
    $("count").title = notes.join("\n");
    if (complete && clicks.rows.some((row) => row.frame === null)) {
      clicks.take(id, await api.rows(id)); // those that are given by a time
    }
    render();
  }
}

const known = () => Math.max(state.times.length, state.frame + 1);

async function show(frame) {
  if (!state.info) return;
  frame = Math.min(Math.max(0, frame), state.complete ? state.times.length - 1 : Infinity);
  const id = state.video, moved = frame !== state.frame || !view.picture;
  state.frame = frame;
  if (moved) {
    state.selected = null;
    state.preview.clear();
    state.run = [];
  }
  render();
  try {
    const picture = await state.frames.get(frame);
    if (state.frame !== frame || state.video !== id) return;
    view.picture = picture;
    layers();
    render();
    if (state.playing) return void state.frames.ahead([1, 2, 3, 4].map((step) => frame + step));
    await settle(id, frame);
  } catch (error) {
    say(error.message);
  }
}

/** What a frame has beside its picture, once a person stays on it. */
async function settle(id, frame) {
  api.look(id, frame).catch(() => {});
  preview(clicks.objects.filter((object) => clicks.at(frame, object).length));
  if (state.project.review) {
    const masks = await api.masks(id, frame);
    if (state.frame !== frame || state.video !== id) return;
    state.run = masks;
    layers();
    render();
  }
  const last = state.complete ? state.times.length - 1 : Infinity;
  const near = [1, -1, 2, -2, 3].map((step) => frame + step);
  state.frames.ahead(near.filter((index) => index >= 0 && index <= last));
}

async function play() {
  state.playing = !state.playing;
  render();
  while (state.playing && state.frame < known() - 1) {
    const before = state.times[state.frame], after = state.times[state.frame + 1];
    const wait = before !== null && after !== null ? Math.min(1, after - before) : 0.04;
    await Promise.all([show(state.frame + 1), new Promise((go) => setTimeout(go, wait * 1000))]);
  }
  pause();
}

function pause() {
  if (!state.playing) return;
  state.playing = false;
  show(state.frame);
}

// Masks

/** The mask of an object on the frame that is shown, and where it comes from. */
function maskOf(object) {
  const found = state.preview.get(object);
  if (found) return { ...found, from: "preview" };
  const tracked = tracks.at(state.frame).find((one) => one.object_id === object);
  if (tracked) return { ...tracked, from: "tracked" };
  const run = state.run.find((one) => one.object_id === object);
  return run && { ...run, from: "run" };
}

const tints = new WeakMap();

function layers() {
  const objects = new Set([
    ...clicks.objects, ...state.run.map((one) => one.object_id),
    ...tracks.at(state.frame).map((one) => one.object_id),
  ]);
  view.layers = [];
  for (const object of state.masks ? objects : []) {
    const mask = maskOf(object);
    if (!mask) continue;
    const key = state.preview.get(object) ?? tracks.at(state.frame).find((o) => o.object_id === object)
      ?? state.run.find((o) => o.object_id === object);
    if (!tints.has(key)) tints.set(key, tinted(mask, colourOf(object)));
    view.layers.push(tints.get(key));
  }
  view.draw();
}

const asking = new Map(); // object: what aborts its last question

async function preview(objects) {
  const id = state.video, frame = state.frame;
  await Promise.all(objects.map(async (object) => {
    asking.get(object)?.abort();
    const rows = clicks.at(frame, object);
    if (!rows.length) {
      state.preview.delete(object);
      return layers();
    }
    const abort = new AbortController();
    asking.set(object, abort);
    const asked = [{
      object_id: object, corrects: rows[0].role === "correct",
      clicks: rows.map(({ x, y, x2, y2, label }) => (x2 === undefined ? { x, y, label } : { x, y, x2, y2 })),
    }];
    try {
      const [mask] = await api.preview(id, frame, asked, abort.signal);
      if (state.video !== id || state.frame !== frame || abort.signal.aborted) return;
      if (mask) state.preview.set(object, mask);
      else state.preview.delete(object);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message);
    }
    layers();
    render();
  }));
}

// Clicks

function click(place) {
  if (!state.info) return;
  pause();
  const object = state.object, frame = state.frame;
  // Where a mask is there to be corrected, it is gone on from; else the clicks say it all.
  const corrects = clicks.begun(object, frame) && maskOf(object);
  const saved = clicks.add(frame, object, place, corrects ? "correct" : "init");
  preview([object]);
  saved.then((done) => {
    if (!done) return preview([object]);
    state.selected = clicks.at(frame, object).at(-1) ?? null;
    spans();
  });
}

async function undo(redo) {
  const before = clicks.rows;
  if (!(await clicks.undo(redo))) return;
  const text = ({ row, ...rest }) => JSON.stringify(rest);
  const [old, now] = [before.map(text), clicks.rows.map(text)];
  const changed = [...before, ...clicks.rows].find(
    (row) => !old.includes(text(row)) || !now.includes(text(row)));
  if (changed && changed.frame !== null && changed.frame !== state.frame) await show(changed.frame);
  else await preview(clicks.objects);
  spans();
}

function remove() {
  const mine = clicks.at(state.frame, state.object).filter((row) => !row.pending);
  const row = mine.find((one) => one.row === state.selected?.row) ?? mine.at(-1);
  if (!row) return say("nothing of this object is clicked on this frame");
  clicks.remove(row).then(() => { preview([row.object_id]); spans(); });
}

function word(role) {
  if (!clicks.all.some((row) => row.object_id === state.object && row.frame < state.frame)) {
    return say("click on the object on an earlier frame first; from here on it can then be gone");
  }
  clicks.word(state.frame, state.object, role).then(() => { preview([state.object]); spans(); });
}

function choose(object) {
  state.object = object;
  render();
}

function newObject() {
  const object = Math.max(0, ...clicks.objects) + 1;
  clicks.names.set(object, "");
  choose(object);
}

// Review

/** All spans of all videos, worst first, as review.csv has them. */
function allSpans() {
  const found = state.project.videos.flatMap((video) => video.spans ?? []);
  return found.sort((a, b) => b.severity - a.severity);
}

/** Learn what the last change answered. */
function spans() {
  const place = state.project.videos.findIndex((video) => video.id === clicks.about?.id);
  if (place >= 0) state.project.videos[place] = clicks.about;
  render();
}

async function openSpan(place) {
  const span = allSpans()[place];
  if (!span) return;
  state.span = place;
  await open(span.video_id, span.click_frame);
  choose(span.object_id);
}

/** The next span before or after that nothing was said of yet. */
function nextSpan(step) {
  const all = allSpans();
  for (let i = 1; i <= all.length; i++) {
    const place = (state.span + step * i + all.length * 2) % all.length;
    if (!all[place].answer) return openSpan(place);
  }
  return say(all.length ? "every span has been looked at" : "this run has no doubtful span");
}

async function accept() {
  const span = allSpans()[state.span];
  if (!span || span.video_id !== state.video) return say("choose a span first: ]");
  if (!span.answer && !(await clicks.accept(span))) return;
  spans();
  await nextSpan(1);
}

// What is shown

function objects() {
  const found = new Set([...clicks.objects, ...Object.keys(state.info?.states ?? {}).map(Number)]);
  found.add(state.object);
  return [...found].sort((a, b) => a - b);
}

function lanes() {
  return objects().map((object) => {
    const runs = [...(state.info?.states[object] ?? []), ...tracks.runs(object)];
    const marks = clicks.all
      .filter((row) => row.object_id === object && row.frame !== null && row.role !== "accept")
      .map((row) => ({ frame: row.frame, kind: isPlaced(row) ? "click" : row.role }));
    return { object, marks, runs: [...clicks.coverage(object, known()), ...runs] };
  });
}

function render() {
  if (!state.project) return;
  showVideos(state.project, state.video, state.filter, open);
  $("title").textContent = state.video ?? "";
  if (clicks.id === state.video) spansAndObjects();
  $("frame").value = document.activeElement === $("frame") ? $("frame").value : state.frame;
  const total = state.times.length.toLocaleString("en");
  $("count").textContent = state.complete ? `of ${total}` : `of ${total}… (counting)`;
  const time = state.times[state.frame];
  $("seconds").textContent = time === null || time === undefined ? "" : `${time.toFixed(3)} s`;
  $("play").textContent = state.playing ? "❚❚" : "▶";
  timeline.show({
    count: known(), frame: state.frame, lanes: lanes(), active: state.object,
    spans: (clicks.about?.spans ?? []).filter((span) => span.video_id === state.video),
  });
  view.marks = clicks.at(state.frame);
  view.active = state.object;
  view.selected = state.selected?.row ?? null;
  view.draw();
}

function spansAndObjects() {
  $("undo").disabled = !clicks.undoable;
  $("redo").disabled = !clicks.redoable;
  showObjects(objects().map((object) => {
    const mask = state.masks && maskOf(object);
    const points = clicks.all.filter((row) => row.object_id === object && isPlaced(row)).length;
    const note = mask && `${mask.state ?? mask.from} ${mask.score.toFixed(2)}`;
    return { object, name: clicks.nameOf(object), points, note };
  }), state.object, {
    choose, rename: (object, name) => clicks.rename(object, name), left: () => setTimeout(render),
  });
  const faults = clicks.about?.faults ?? [];
  $("faults").replaceChildren(...faults.map((text) =>
    Object.assign(document.createElement("li"), { textContent: text })));
  trackPanel();
  if (state.project.review) reviewPanel();
}

function trackPanel() {
  const { running, share, text } = tracks.progress;
  $("cancel").hidden = $("progress").hidden = !running;
  $("progress").value = share;
  $("track-state").textContent = text;
}

function reviewPanel() {
  const all = allSpans();
  showSpans(all, state.span, (span) => {
    const name = span.video_id === state.video && clicks.nameOf(span.object_id);
    return `${span.video_id} · ${name || `object ${span.object_id}`}`;
  }, openSpan);
  const changed = state.project.videos.filter((video) => video.standing === "changed").length;
  $("redo-count").textContent = `jobs.mask would mask ${counted(changed, "video")} anew`;
}

function status(text, kind) {
  $("saved").textContent = text;
  $("saved").dataset.kind = kind;
}

function say(text) {
  $("message").firstElementChild.textContent = text;
  $("message").hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("message").hidden = true; }, 8000);
}

/** A change that was not saved: say so, and show what is on disk. */
async function fail(error) {
  status("Not saved", "failed");
  say(`Not saved: ${error.message}`);
  if (error.status !== 409) return;
  const id = clicks.id;
  const answer = await api.rows(id).catch(() => null);
  if (answer && clicks.id === id) {
    clicks.take(id, answer);
    say(`Not saved: ${error.message}. This page now shows them as they are; click again.`);
    show(state.frame);
  }
}

// Keys and buttons

const actions = {
  remove, newObject,
  undo: () => undo(false),
  redo: () => undo(true),
  choose: (key) => objects()[key - 1] && choose(objects()[key - 1]),
  nextObject: () => choose(objects()[(objects().indexOf(state.object) + 1) % objects().length]),
  rename: () => document.querySelector(`[data-object="${state.object}"] input`)?.select(),
  absent: () => word("absent"),
  end: () => word("end"),
  step: (key, ten) => { pause(); show(state.frame + (key === "ArrowLeft" ? -1 : 1) * (ten ? 10 : 1)); },
  prompted: (key) => {
    const frames = clicks.prompted;
    const to = key === "," ? frames.filter((f) => f < state.frame).at(-1) : frames.find((f) => f > state.frame);
    if (to !== undefined) show(to);
  },
  edge: (key) => show(key === "Home" ? 0 : known() - 1),
  goto: () => $("frame").select(),
  play: () => (state.playing ? pause() : play()),
  track: async () => {
    const seconds = Math.max(0.1, Number($("track-seconds").value.replace(",", ".")) || 3);
    const end = state.times.findIndex((time) => time !== null && time >= (state.times[state.frame] ?? 0) + seconds);
    const none = state.times[0] === null || state.times[0] === undefined;
    const until = none ? state.frame + Math.round(seconds * 25) : end < 0 ? known() : end;
    tracks.start(state.video, state.frame, Math.max(1, until - state.frame));
  },
  escape: () => { tracks.cancel(); state.selected = null; render(); },
  zoom: (key) => view.zoom(key === "-" ? 0.8 : 1.25),
  fit: () => view.fit(),
  actual: () => view.zoomTo(1 / devicePixelRatio),
  masks: () => { state.masks = !state.masks; layers(); render(); },
  video: (key) => {
    const all = state.project.videos, at = all.findIndex((video) => video.id === state.video);
    const to = all[at + (key === "PageUp" ? -1 : 1)];
    if (to) open(to.id);
  },
  filter: () => $("filter").focus(),
  help: () => $("help").showModal(),
  span: (key) => nextSpan(key === "[" ? -1 : 1),
  accept,
};

const buttons = {
  undo: actions.undo, redo: actions.redo, new: newObject, absent: actions.absent, end: actions.end,
  delete: remove, track: actions.track, cancel: () => tracks.cancel(), accept,
  "previous-span": () => nextSpan(-1), "next-span": () => nextSpan(1),
  "zoom-in": () => actions.zoom("+"), "zoom-out": () => actions.zoom("-"), zoom: actions.fit,
  first: () => actions.edge("Home"), last: () => actions.edge("End"), play: actions.play,
  back: () => actions.step("ArrowLeft"), forward: () => actions.step("ArrowRight"),
  "help-button": actions.help, "help-close": () => $("help").close(),
  done: async () => {
    await clicks.queue;
    await api.done().catch(() => {});
    document.body.replaceChildren(Object.assign(document.createElement("p"), {
      className: "farewell", textContent: "Everything is saved, and jobs.prompt has ended. You can close this tab.",
    }));
  },
};

for (const [id, action] of Object.entries(buttons)) {
  $(id).addEventListener("click", () => { action(); $("view").focus(); });
}
$("frame").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== "Escape") return;
  const wanted = Number(event.target.value);
  event.target.blur();
  if (event.key === "Enter" && Number.isInteger(wanted)) show(wanted);
  else render();
});
$("filter").addEventListener("input", (event) => { state.filter = event.target.value; render(); });
$("filter").addEventListener("keydown", (event) => event.key === "Escape" && event.target.blur());
$("message").querySelector("button").addEventListener("click", () => { $("message").hidden = true; });
addEventListener("hashchange", () => open(decodeURIComponent(location.hash.slice(1))));
listen(actions);
window.patchray = { state, view, clicks, show }; // for the console, and for tests
start().catch((error) => say(error.message));
