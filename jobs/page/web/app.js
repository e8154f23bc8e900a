// The page: which video and frame is shown, and what is shown of them.

import { listenToAll } from "./actions.js";
import { api } from "./api.js";
import { Clicks, isPlaced } from "./clicks.js";
import { Frames } from "./frames.js";
import { Layers } from "./layers.js";
import { $, make, showObjects, showVideos } from "./panels.js";
import { Review } from "./review.js";
import { Timeline } from "./timeline.js";
import { Tracks } from "./tracks.js";
import { View } from "./view.js";

const GONE = 410; // what was asked for is of a file that is not there any more
const state = {
  project: null, video: null, info: null, frames: null, times: [], complete: false,
  frame: 0, object: 1, selected: null, playing: null, filter: "",
};
const page = { state, open, show, play, pause, choose, render, say, known, objects, changed };

const failed = (error) => {
  say(error.message);
  if (error.status !== GONE || !state.info) return;
  state.info = null; // the file is another one by now
  open(state.video);
};
const clicks = (page.clicks = new Clicks(api, {
  changed: render, failed: notSaved,
  saving: () => status("Saving…", "saving"),
  saved: () => status("Saved", "ok"),
}));
const layers = (page.layers = new Layers(api, page, { changed: render, failed }));
const review = (page.review = new Review(page));
const tracks = (page.tracks = new Tracks(api, {
  changed: () => { layers.draw(); render(); }, failed,
}));
const timeline = new Timeline($("timeline"), { seek: (frame) => { pause(); show(frame); } });
const view = (page.view = new View($("view"), {
  click: (x, y, negative, frame) => click({ x, y, label: negative ? 0 : 1 }, frame),
  box: click,
  select: (row) => { state.selected = row; choose(row.object_id); },
  drag: async (row, columns) => {
    if (await clicks.change(row, columns)) await changed([row.object_id]);
  },
  hover: (pixel) => { $("where").textContent = pixel ? `x ${pixel[0]}  y ${pixel[1]}` : ""; },
  zoom: (scale) => { $("zoom").textContent = `${Math.round(scale * 100)} %`; },
}));

async function start() {
  state.project = await api.project();
  $("review-panel").hidden = !state.project.review;
  $("title").title = state.project.manifest;
  const { videos } = state.project, wanted = decodeURIComponent(location.hash.slice(1));
  await open((videos.find((video) => video.id === wanted) ?? videos[0]).id);
}

// Videos and frames

/** Show a video, on a frame, or else where it is clicked on first. */
async function open(id, frame) {
  if (state.video === id && state.info) return frame === undefined ? undefined : show(frame);
  await clicks.queue;
  pause();
  Object.assign(state, { video: id, info: null, selected: null, times: [], complete: false, frame: 0 });
  clicks.leave();
  layers.leave();
  tracks.leave();
  view.picture = view.frame = null;
  view.draw();
  $("empty").textContent = "opening…";
  $("empty").hidden = false;
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  render();
  try {
    const info = await api.video(id);
    if (state.video !== id) return undefined;
    state.info = info;
    state.frames = new Frames((index) => api.frame(id, index, info.version));
    view.size = [info.width, info.height];
    clicks.take(id, info.rows);
    state.object = clicks.objects[0] ?? 1;
    view.fit();
    count(id);
    tracks.enter(id);
    await show(frame ?? clicks.prompted[0] ?? 0);
  } catch (error) {
    if (state.video === id) $("empty").textContent = error.message;
  }
  return undefined;
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
      clicks.take(id, await api.rows(id)); // of clicks that are given by a time
    }
    render();
  }
}

/** How many frames there are, as far as is known. */
function known() {
  return Math.max(state.times.length, state.frame + 1);
}

async function show(wanted) {
  if (!state.info) return;
  const frame = Math.min(Math.max(0, wanted), state.complete ? state.times.length - 1 : Infinity);
  if (frame !== state.frame || !view.picture) {
    state.selected = null;
    layers.leave();
  }
  state.frame = frame;
  render();
  const { frames } = state;
  const here = () => state.frame === frame && state.frames === frames;
  try {
    const picture = await frames.get(frame);
    // One that was scrubbed past is shown, too, as long as the one that is wanted is not there.
    if (state.frames !== frames || (!here() && view.frame === state.frame)) return;
    Object.assign(view, { picture, frame });
    frames.shown = picture;
    $("empty").hidden = true;
    render();
    if (!here()) return;
    layers.draw();
    if (state.playing) state.frames.ahead([1, 2, 3, 4].map((step) => frame + step));
    else await settle(state.video, frame);
  } catch (error) {
    if (here()) failed(error);
  }
}

/** What a frame has beside its picture, once a person stays on it. */
async function settle(id, frame) {
  api.look(id, frame, state.info.version).catch((error) => error.status === GONE && failed(error));
  layers.ask(clicks.objects.filter((object) => clicks.at(frame, object).length));
  if (state.project.review) await layers.fetch();
  if (state.frame !== frame || state.video !== id) return;
  const last = state.complete ? state.times.length - 1 : Infinity;
  const near = [1, -1, 2, -2, 3].map((step) => frame + step);
  state.frames.ahead(near.filter((index) => index >= 0 && index <= last));
}

async function play() {
  const turn = (state.playing = {}); // whoever plays again does not go on with this one
  while (state.playing === turn && state.frame < known() - 1) {
    const [before, after] = [state.times[state.frame], state.times[state.frame + 1]];
    const wait = typeof after === "number" ? Math.min(1, after - before) : 0.04;
    await Promise.all([
      show(state.frame + 1), new Promise((go) => setTimeout(go, wait * 1000)),
    ]);
  }
  if (state.playing === turn) pause();
}

function pause() {
  if (!state.playing) return;
  state.playing = null;
  show(state.frame);
}

// Clicks

/** frame: the one that was shown at the place when the pointer went down. */
async function click(place, frame) {
  if (!state.info) return;
  if (state.playing) {
    state.playing = null;
    show(frame);
  } else if (frame !== state.frame) {
    say("that frame was still on its way: click again");
    return;
  }
  const { object } = state;
  // Where a mask is there to be corrected, it is gone on from; else the clicks say it all.
  const corrects = clicks.begun(object, frame) && layers.of(object);
  const saved = clicks.add(frame, object, place, corrects ? "correct" : "init");
  layers.ask([object]);
  if (await saved) {
    state.selected = clicks.at(frame, object).at(-1) ?? null;
    await changed([]);
  } else {
    await layers.ask([object]);
  }
}

/** After a change is saved: what it answered, and the masks of objects that it was of. */
async function changed(of) {
  const place = state.project.videos.findIndex((video) => video.id === clicks.about.id);
  if (place >= 0) state.project.videos[place] = clicks.about;
  render();
  await layers.ask(of);
}

function choose(object) {
  state.object = object;
  render();
}

// What is shown

/** Objects that are clicked on, that the run has, and the one that is clicked for. */
function objects() {
  const masked = Object.keys(state.info?.states ?? {}).map(Number);
  return [...new Set([...clicks.objects, ...masked, state.object])].sort((a, b) => a - b);
}

function lanes() {
  return objects().map((object) => {
    const marks = clicks.all
      .filter((row) => row.object_id === object && row.frame !== null && row.role !== "accept")
      .map((row) => ({ frame: row.frame, kind: isPlaced(row) ? "click" : row.role }));
    const run = state.info?.states[object] ?? [];
    return { object, marks, runs: [...clicks.coverage(object, known()), ...run, ...tracks.runs(object)] };
  });
}

/** Show everything anew: what can be clicked on at once, the rest before the browser next draws. */
function render() {
  Object.assign(view, {
    marks: clicks.at(view.frame), active: state.object, selected: state.selected?.row ?? null,
  });
  view.draw();
  render.turn ??= requestAnimationFrame(() => {
    render.turn = null;
    if (state.project) paint();
  });
}

function paint() {
  showVideos(state.project, state.video, state.filter, open);
  $("title").textContent = state.video ?? "";
  const total = state.times.length.toLocaleString("en");
  if (document.activeElement !== $("frame")) $("frame").value = state.frame;
  $("count").textContent = state.complete ? `of ${total}` : `of ${total}… (counting)`;
  const time = state.times[state.frame];
  $("seconds").textContent = typeof time === "number" ? `${time.toFixed(3)} s` : "";
  $("play").textContent = state.playing ? "❚❚" : "▶";
  $("undo").disabled = !clicks.undoable;
  $("redo").disabled = !clicks.redoable;
  showObjects(objects().map(described), state.object, {
    choose, rename: (object, name) => clicks.rename(object, name),
  });
  const faults = clicks.about.faults ?? [];
  $("faults").replaceChildren(...faults.map((text) => make("li", { textContent: text })));
  const { running, share, text } = tracks.progress;
  $("cancel").hidden = $("progress").hidden = !running;
  $("progress").value = share;
  $("track-state").textContent = text;
  if (state.project.review) review.show();
  timeline.show({
    count: known(), frame: state.frame, lanes: lanes(), active: state.object,
    spans: clicks.about.spans ?? [],
  });
}

function described(object) {
  const found = layers.shown && layers.of(object);
  const points = clicks.all.filter((row) => row.object_id === object && isPlaced(row)).length;
  const score = found?.mask.score ? found.mask.score.toFixed(2) : ""; // IoU that is predicted
  const note = found && `${found.mask.state ?? found.from} ${score}`.trim();
  return { object, name: clicks.nameOf(object), points, note };
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
async function notSaved(error) {
  status("Not saved", "failed");
  say(`Not saved: ${error.message}`);
  if (error.status !== 409) return;
  const id = clicks.id, answer = await api.rows(id).catch(() => null);
  if (!answer || clicks.id !== id) return;
  clicks.take(id, answer);
  say(`Not saved: ${error.message}. They are shown as they are now; click again.`);
  show(state.frame);
}

listenToAll(page, api);
window.patchray = page; // for the console, and for tests
start().catch(failed);
