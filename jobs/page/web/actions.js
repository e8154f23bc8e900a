// The actions of keys and buttons.

import { isPlaced } from "./clicks.js";
import { KEYS, listen } from "./keys.js";
import { $, make, showKeys } from "./panels.js";

export function listenToInput(page, api) {
  const { state, view, clicks, tracks, layers, review } = page;
  const { open, show, play, pause, choose, render, say, known, objects, changed } = page;

  /** Undo, or redo, the last change, and show its frame. */
  async function undo(redo) {
    if (clicks.id === null) return;
    const before = clicks.rows;
    if (!(await clicks.undo(redo))) return;
    const text = ({ row, ...rest }) => JSON.stringify(rest);
    const [old, now] = [before, clicks.rows].map((rows) => new Set(rows.map(text)));
    const other = [...before, ...clicks.rows].find((row) => !old.has(text(row)) || !now.has(text(row)));
    if (other && other.frame !== null && other.frame !== state.frame) await show(other.frame);
    await changed(clicks.objects.filter((object) => clicks.at(state.frame, object).length || layers.of(object)));
  }

  /** Delete the selected point or box, or else the last one of the object on this frame. */
  async function remove() {
    const rows = clicks.at(state.frame, state.object).filter((row) => !row.pending);
    const row = rows.find((one) => one.row === state.selected?.row) ?? rows.at(-1);
    if (!row) return say("This object has no click on this frame.");
    return (await clicks.remove(row)) && changed([row.object_id]);
  }

  /** Mark the object as absent, or as ended, from this frame on; or remove that mark. */
  async function toggleRole(role) {
    const { object, frame } = state;
    if (!clicks.all.some((row) => row.object_id === object && isPlaced(row) && row.frame < frame)) {
      return say("Click on the object on an earlier frame first.");
    }
    return (await clicks.toggleRole(frame, object, role)) && changed([object]);
  }

  function newObject() {
    const object = Math.max(0, ...clicks.objects) + 1;
    clicks.names.set(object, "");
    choose(object);
  }

  function track() {
    const seconds = Math.max(0.1, Number($("track-seconds").value.replace(",", ".")) || 3);
    const now = state.times[state.frame];
    let end = state.frame + Math.round(seconds * 25); // for videos without timestamps
    if (typeof now === "number") {
      end = state.times.findIndex((time) => time >= now + seconds);
      if (end < 0) end = known();
    }
    tracks.start(state.video, state.frame, Math.max(1, end - state.frame));
  }

  async function done() {
    await clicks.queue;
    if (clicks.refused) {
      clicks.refused = false;
      return say("Your last change was not saved. Make it again, or press Done again to end without it.");
    }
    try {
      await api.done();
    } catch (error) {
      return say(error.message);
    }
    return document.body.replaceChildren(make("p.farewell", {
      textContent: "Everything is saved, and jobs.prompt has ended. You can close this tab.",
    }));
  }

  const step = (key, ten) => {
    pause();
    show(state.frame + (key === "ArrowLeft" ? -1 : 1) * (ten ? 10 : 1));
  };
  const actions = {
    remove, newObject, track, step,
    undo: () => undo(false),
    redo: () => undo(true),
    choose: (key) => objects()[key - 1] && choose(objects()[key - 1]),
    nextObject: () => choose(objects()[(objects().indexOf(state.object) + 1) % objects().length]),
    rename: () => document.querySelector(`[data-object="${state.object}"] input`)?.select(),
    absent: () => toggleRole("absent"),
    end: () => toggleRole("end"),
    prompted: (key) => {
      const to = key === "," ? clicks.prompted.filter((frame) => frame < state.frame).at(-1)
        : clicks.prompted.find((frame) => frame > state.frame);
      if (to !== undefined) show(to);
    },
    edge: (key) => show(key === "Home" ? 0 : known() - 1),
    goto: () => $("frame").select(),
    play: () => (state.playing ? pause() : play()),
    escape: () => { tracks.cancel(); state.selected = null; render(); },
    zoom: (key) => view.zoom(key === "-" ? 0.8 : 1.25),
    fit: () => view.fit(),
    actual: () => view.zoomTo(1 / devicePixelRatio),
    masks: () => { layers.shown = !layers.shown; layers.draw(); render(); },
    video: (key) => {
      const { videos } = state.project, at = videos.findIndex((video) => video.id === state.video);
      const to = videos[at + (key === "PageUp" ? -1 : 1)];
      if (to) open(to.id);
    },
    filter: () => $("filter").focus(),
    help: () => $("help").showModal(),
    span: (key) => review.next(key === "[" ? -1 : 1),
    accept: () => review.accept(),
  };
  const buttons = {
    undo: actions.undo, redo: actions.redo, new: newObject, absent: actions.absent,
    end: actions.end, delete: remove, track, cancel: () => tracks.cancel(),
    accept: actions.accept, done,
    "previous-span": () => review.next(-1), "next-span": () => review.next(1),
    "zoom-in": () => actions.zoom("+"), "zoom-out": () => actions.zoom("-"), zoom: actions.fit,
    first: () => actions.edge("Home"), last: () => actions.edge("End"), play: actions.play,
    back: () => step("ArrowLeft"), forward: () => step("ArrowRight"),
    "help-button": actions.help, "help-close": () => $("help").close(),
  };

  for (const [id, action] of Object.entries(buttons)) {
    $(id).addEventListener("click", () => {
      action();
      if (!$("help").open) $("view").focus(); // so that the next key is not one of the button
    });
  }
  $("frame").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    const wanted = Number(event.target.value);
    event.target.blur();
    if (event.key === "Enter" && Number.isInteger(wanted)) show(wanted);
    else render();
  });
  $("filter").addEventListener("input", (event) => { state.filter = event.target.value; render(); });
  for (const id of ["filter", "track-seconds"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    });
  }
  $("message").querySelector("button").addEventListener("click", () => { $("message").hidden = true; });
  addEventListener("hashchange", () => open(decodeURIComponent(location.hash.slice(1))));
  showKeys(KEYS);
  listen(actions);
}
