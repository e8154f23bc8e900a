// The table of keys and their actions, which the help shows, too.

/** [group, [[keys as shown, description, keys as in events, action], ...]] */
export const KEYS = [
  ["Clicking", [
    ["Click", "add a point on the object"],
    ["Right click / Alt + click", "add a point that is not on the object"],
    ["Drag", "add a box, or move a point or the corner of a box"],
    ["Del", "delete the selected or last click", ["Delete", "Backspace"], "remove"],
    ["Ctrl + Z", "undo", ["ctrl+z"], "undo"],
    ["Ctrl + Shift + Z", "redo", ["ctrl+shift+z", "ctrl+y"], "redo"],
  ]],
  ["Objects", [
    ["N", "new object", ["n"], "newObject"],
    ["1 / … / 9", "choose an object", ["1", "2", "3", "4", "5", "6", "7", "8", "9"], "choose"],
    ["O", "choose the next object", ["o"], "nextObject"],
    ["R", "rename the object", ["r"], "rename"],
    ["X", "mark the object as not visible from this frame on", ["x"], "absent"],
    ["E", "end the object: no masks from this frame on", ["e"], "end"],
  ]],
  ["Time", [
    ["← / →", "previous, next frame", ["ArrowLeft", "ArrowRight"], "step"],
    ["Shift + ← / →", "ten frames back, forward", ["shift+ArrowLeft", "shift+ArrowRight"], "step"],
    [", / .", "previous, next frame with clicks", [",", "."], "prompted"],
    ["Home / End", "first, last frame", ["Home", "End"], "edge"],
    ["G", "go to a frame by its number", ["g"], "goto"],
    ["Space", "play, pause", [" "], "play"],
    ["T", "track a few seconds from this frame on", ["t"], "track"],
    ["Esc", "stop tracking", ["Escape"], "escape"],
  ]],
  ["View", [
    ["Wheel / + / -", "zoom", ["+", "=", "-"], "zoom"],
    ["0", "fit the frame to the window", ["0"], "fit"],
    ["Z", "actual size: one screen pixel per pixel", ["z"], "actual"],
    ["Ctrl + drag", "move the frame (also with the middle button)"],
    ["M", "hide, show masks", ["m"], "masks"],
    ["Page ↑ / Page ↓", "previous, next video", ["PageUp", "PageDown"], "video"],
    ["/", "filter videos", ["/"], "filter"],
    ["?", "show this list", ["?"], "help"],
  ]],
  ["Review", [
    ["[ / ]", "previous, next doubtful span", ["[", "]"], "span"],
    ["A", "accept the span: its masks are right", ["a"], "accept"],
  ]],
];

const ACTIONS = new Map(
  KEYS.flatMap(([, keys]) => keys)
    .filter((key) => key[2])
    .flatMap(([, , events, action]) => events.map((event) => [event, action])),
);

/** Call actions[name](key, shift) for keys that are not typed into a field. */
export function listen(actions) {
  addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.altKey) return;
    const ctrl = event.ctrlKey || event.metaKey ? "ctrl+" : "";
    const shift = event.shiftKey && (ctrl || event.key.startsWith("Arrow")) ? "shift+" : "";
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = ACTIONS.get(ctrl + shift + key);
    const button = event.target.matches("button") && event.key === " ";
    if (!action || button || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    actions[action](key, Boolean(shift));
  });
}
