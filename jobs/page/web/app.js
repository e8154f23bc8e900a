// The page: its state, and how it is shown.

import { listenToInput } from "./actions.js";
import { api } from "./api.js";
import { Clicks, hasHandle, isPlaced } from "./clicks.js";
import { Frames } from "./frames.js";
import { Layers } from "./layers.js";
import { $, make, showObjects, showVideos } from "./panels.js";
import { Review } from "./review.js";
import { Timeline } from "./timeline.js";
import { Tracks } from "./tracks.js";
import { View } from "./view.js";

const GONE = 410; // the status of a request for a file that has changed
const state = {
  project: null, video: null, info: null, frames: null, times: [], names: [], complete: false,
  frame: 0, object: 1, selected: null, playing: null, filter: "",
};
const page = { state, open, show, play, pause, choose, render, say, known, objects, changed };

const failed = (error) => {
  say(error.message);
  if (error.status !== GONE || !state.info) return;
  state.info = null; // so that the changed file is opened
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

let opening = null; // the AbortController of the last request to open a video

/** Show a video at a frame, or else at its first frame with clicks. */
async function open(id, frame) {
  if (state.video === id && state.info) return frame === undefined ? undefined : show(frame);
  await clicks.queue;
  pause();
  Object.assign(state, {
    video: id, info: null, selected: null, times: [], names: [], complete: false, frame: 0,
  });
  clicks.clear();
  layers.clear();
  tracks.clear();
  view.picture = view.frame = null;
  view.draw();
  $("empty").textContent = "Opening…";
  $("empty").hidden = false;
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  render();
  opening?.abort(); // a video that takes long must not keep a connection
  opening = new AbortController();
  try {
    const info = await api.video(id, opening.signal);
    if (state.video !== id) return undefined;
    state.info = info;
    state.frames = new Frames((index) => api.frame(id, index, info.version));
    view.size = [info.width, info.height];
    clicks.take(id, info.rows);
    state.object = clicks.objects[0] ?? 1;
    view.fit();
    loadTimestamps(id);
    tracks.resume(id);
    await show(frame ?? clicks.prompted[0] ?? 0);
  } catch (error) {
    if (state.video === id && error.name !== "AbortError") $("empty").textContent = error.message;
  }
  return undefined;
}

/** Load the timestamps of frames while the server scans the file. */
async function loadTimestamps(id) {
  while (state.video === id && !state.complete) {
    const { times, names, complete, notes } =
      await api.timestamps(id, state.times.length).catch(() => ({}));
    if (state.video !== id || !times) return;
    state.times.push(...times);
    state.names.push(...names);
    state.complete = complete;
    $("count").title = notes.join("\n");
    if (complete && clicks.rows.some((row) => row.frame === null)) {
      clicks.take(id, await api.rows(id)); // now with the frames of clicks that have a time
    }
    render();
  }
}

/** The number of frames that are known. */
function known() {
  return Math.max(state.times.length, state.frame + 1);
}

async function show(wanted) {
  if (!state.info) return;
  const frame = Math.min(Math.max(0, wanted), state.complete ? state.times.length - 1 : Infinity);
  if (frame !== state.frame || !view.picture) {
    state.selected = null;
    layers.clear();
  }
  state.frame = frame;
  render();
  const { frames } = state;
  const here = () => state.frame === frame && state.frames === frames;
  try {
    const picture = await frames.get(frame);
    // While scrubbing, a frame that was passed is shown until the wanted one is loaded.
    if (state.frames !== frames || (!here() && view.frame === state.frame)) return;
    Object.assign(view, { picture, frame });
    frames.shown = picture;
    $("empty").hidden = true;
    render();
    if (!here()) return;
    layers.draw();
    if (state.playing) state.frames.prefetch([1, 2, 3, 4].map((step) => frame + step));
    else await settle(state.video, frame);
  } catch (error) {
    if (here()) failed(error);
  }
}

/** Load the masks of a frame on which a person stays, and prefetch its neighbours. */
async function settle(id, frame) {
  api.encodeAhead(id, frame, state.info.version)
    .catch((error) => error.status === GONE && failed(error));
  layers.loadPreviews(clicks.objects.filter((object) => clicks.at(frame, object).length));
  if (state.project.review) await layers.loadRun();
  if (state.frame !== frame || state.video !== id) return;
  const last = state.complete ? state.times.length - 1 : Infinity;
  const near = [1, -1, 2, -2, 3].map((step) => frame + step);
  state.frames.prefetch(near.filter((index) => index >= 0 && index <= last));
}

async function play() {
  const turn = (state.playing = {}); // playing again starts another turn and ends this one
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

/** Add a point or a box; frame: the one that was on the screen when the pointer went down. */
async function click(place, frame) {
  if (!state.info) return;
  if (state.playing) {
    state.playing = null;
    show(frame);
  } else if (frame !== state.frame) {
    say("The frame was still loading. Click again.");
    return;
  }
  const { object } = state;
  // A click where the object already has a mask corrects it; otherwise the clicks alone count.
  const corrects = clicks.locatedBefore(object, frame) && layers.of(object);
  const saved = clicks.add(frame, object, place, corrects ? "correct" : "init");
  layers.loadPreviews([object]);
  if (await saved) {
    state.selected = clicks.at(frame, object).at(-1) ?? null;
    await changed([]);
  } else {
    await layers.loadPreviews([object]);
  }
}

/** After a change was saved: update the list of videos, and the masks of the objects in it. */
async function changed(objects) {
  const place = state.project.videos.findIndex((video) => video.id === clicks.about.id);
  if (place >= 0) state.project.videos[place] = clicks.about;
  render();
  await layers.loadPreviews(objects);
}

function choose(object) {
  state.object = object;
  render();
}

// Drawing

/** The objects with clicks, those of the run, and the chosen one. */
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
    const stretches = [...clicks.coverage(object, known()), ...run, ...tracks.stretches(object)];
    return { object, marks, stretches };
  });
}

/** Update everything: what can be clicked on at once, the rest before the browser draws again. */
function render() {
  Object.assign(view, {
    marks: clicks.at(view.frame).filter(hasHandle), active: state.object, selected: state.selected?.row ?? null,
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
  $("file").textContent = state.names[state.frame] ?? "";
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
  const score = found?.mask.score ? found.mask.score.toFixed(2) : ""; // the predicted IoU
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

/** After a change was not saved: say so, and show the clicks that are on disk. */
async function notSaved(error) {
  status("Not saved", "failed");
  say(`Not saved: ${error.message}`);
  if (error.status !== 409) return;
  const id = clicks.id, answer = await api.rows(id).catch(() => null);
  if (!answer || clicks.id !== id) return;
  clicks.take(id, answer);
  say(`Not saved: ${error.message}. The page now shows the current clicks. Click again.`);
  show(state.frame);
}

listenToInput(page, api);
window.patchray = page; // for the console, and for tests
start().catch(failed);
